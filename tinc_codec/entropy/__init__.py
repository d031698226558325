"""Integers <-> bits."""
