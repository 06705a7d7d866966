"""Sampling: videos and images generated from an exported model and written as files."""
