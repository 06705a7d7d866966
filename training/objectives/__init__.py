"""Training objectives, one per file; the name in YAML is the name of the file."""
