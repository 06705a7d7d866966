"""Evaluation: what a model makes, measured on its own and against the truth of drawn footage."""
