"""Evaluation of generated clips, on their own and against the truth of drawn footage."""
