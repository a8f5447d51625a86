"""The archive: every transaction in a directory or an object store, and back from there (docs/archive.md)."""
