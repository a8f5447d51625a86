"""SQLite's formats, held against SQLite itself."""
