"""The byte layout of a stream, as `docs/format.md` fixes it."""
