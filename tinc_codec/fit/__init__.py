"""Chunk -> float model; never imported to decode."""
