"""Sources: files, stores and arrays that are read box by box, each in a module of its own."""

from tinc_codec.pipeline.sources.opening import open_source

__all__ = ["open_source"]
