"""Models that are shipped: a folder each, which `worldloom export-model` wrote."""
