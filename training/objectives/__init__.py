"""One file a training objective; the YAML name is the file's name."""
