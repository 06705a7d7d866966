"""Forgetting on request: removal from everything a run wrote, its proof, and what later runs leave out."""
