"""From a checkpoint to a playable clip."""
