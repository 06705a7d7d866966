"""Kinds of guidance, one file each."""
