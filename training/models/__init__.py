"""Denoising models, one per file, and the layers that they share; the name in YAML is the name of the file."""
