"""HALT: a replica writes a database in the primary's place (docs/concurrency.md, "HALT")."""
