"""An adapter merged into its base, tensor by tensor."""
