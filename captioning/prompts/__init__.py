"""One file a prompt; the YAML name is the file's name."""
