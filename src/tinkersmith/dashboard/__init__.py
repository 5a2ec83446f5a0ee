"""A page of all runs, whose curves move while training goes on."""
