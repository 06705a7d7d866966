"""Latent shards, buckets, the batch plan and the loader: what curation writes and training reads."""
