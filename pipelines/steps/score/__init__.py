"""Scores: each writes documented columns and never drops a row."""
