"""Files of samples: reading, checking, duplicates, lengths, and the order of samples."""
