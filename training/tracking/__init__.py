"""Records of a training run: metrics, trackers, throughput and previews."""
