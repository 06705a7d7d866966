"""From curated clips to what training reads: splits, text embeddings, the manifest."""
