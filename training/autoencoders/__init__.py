"""One file an autoencoder (pixels <-> latents); the YAML name is the file's name."""
