"""One file a text encoder; the YAML name is the file's name."""
