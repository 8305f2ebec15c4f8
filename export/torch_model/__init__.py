"""The trained model in torch: where it computes, and its weights in memory."""
