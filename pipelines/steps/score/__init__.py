"""Scores: steps that measure live clips, write documented columns and drop no row."""
