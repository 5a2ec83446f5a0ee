"""What is known of models by their names: the table of families, and the names themselves."""
