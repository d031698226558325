"""The function that is stored: an octree of sine layers."""
