"""Numbers, units, expressions and structures of mathematics, read from text and compared."""
