"""Images in sequences: from the bytes of a file to what a model reads in place of tokens."""
