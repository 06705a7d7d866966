"""Drawn scenes: coloured shapes that move and collide under a moving camera, and the captions that describe them."""
