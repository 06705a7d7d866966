"""Autoencoders (pixels to latents and back), one per file; the name in YAML is the name of the file."""
