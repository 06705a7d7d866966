"""Plug-ins for worldloom: a score, a captioning engine and a model."""
