"""SQLite's file formats and lock bytes. Nothing here does I/O."""
