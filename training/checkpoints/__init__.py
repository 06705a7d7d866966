"""Checkpoints to resume from, and exports to sample from."""
