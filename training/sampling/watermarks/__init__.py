"""Kinds of invisible watermarks, one file each."""
