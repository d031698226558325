"""Chunks as arrays: what is in them, padding, masks, and the way to [0, 1] and back."""
