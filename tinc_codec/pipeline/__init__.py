"""Whole volumes: from a file to a compressed, verified Zarr, and back."""
