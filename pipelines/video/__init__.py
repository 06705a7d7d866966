"""Pure functions from a video file to shots, signals and frames. No Ray, no tables."""
