"""Captioning engines, one file each; the YAML name of an engine is the name of its file."""
