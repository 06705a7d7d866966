"""One file a curation step; the path of the file is its name in YAML."""
