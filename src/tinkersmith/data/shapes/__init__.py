"""Records of every known shape -> samples. Begin with `check`, which decides who reads a record."""
