"""Everything language: captioning engines, caption quality, text encoders. Imports only `cluster`."""
