"""The model: autoencoders, latent shards, batch planning, the diffusion transformer, training and sampling."""
