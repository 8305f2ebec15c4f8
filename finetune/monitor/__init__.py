"""What a run reports while it trains: metrics, curves, trackers, warnings."""
