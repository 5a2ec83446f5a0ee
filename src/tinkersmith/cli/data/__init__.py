"""Commands about data: split, convert, check, stats and preview."""
