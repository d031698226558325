"""Settings that hold for all tests."""

from hypothesis import settings

# The first call of a compiled function takes seconds, which says nothing about a test.
settings.register_profile("tinc", deadline=None)
settings.load_profile("tinc")
