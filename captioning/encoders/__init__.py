"""Text encoders, one file each; the YAML name of an encoder is the name of its file."""
