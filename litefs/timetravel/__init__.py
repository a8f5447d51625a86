"""Databases of an archive as they were at a moment, on a read-only mount (docs/archive.md)."""
