"""One file a captioner; the YAML name is the file's name."""
