"""Training of the autoencoder `causal` on clips of raw footage."""
