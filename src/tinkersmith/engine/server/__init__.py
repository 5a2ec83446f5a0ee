"""HTTP: requests and answers of the Tinker API. Imports no torch."""
