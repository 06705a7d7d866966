"""Captioning engines, text encoders and rules for the quality of captions. Imports only `cluster`."""
