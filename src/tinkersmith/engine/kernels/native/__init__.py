"""C++ for CPUs: compiled on the user's machine, checked against torch, left out where it fails."""
