"""Solvers of the sampling equation, one file each."""
