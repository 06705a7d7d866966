"""Exports of models that are shipped, a folder each."""
