"""Export formats, a module per format; `--to` takes the module's name with - for _."""
