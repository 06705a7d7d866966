"""One file a denoising model, and the layers they share; the YAML name is the file's name."""
