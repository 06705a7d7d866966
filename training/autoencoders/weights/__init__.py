"""Weights that ship with the package; README.md describes how each file was made."""
