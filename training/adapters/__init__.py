"""Low-rank adapters: trained beside frozen weights, and merged into them for sampling."""
