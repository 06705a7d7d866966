"""Export of curated clips: cutting them out of their sources, and the layouts that other tools read."""
