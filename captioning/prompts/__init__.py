"""Packaged prompts, one YAML file each; the name of a prompt is the name of its file."""
