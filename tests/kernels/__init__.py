"""Each compiled kernel against a plain-Python reference."""
