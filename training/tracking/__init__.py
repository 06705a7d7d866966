"""What a run records while it trains: metrics, trackers, throughput, previews."""
