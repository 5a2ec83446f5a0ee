"""Proof that a server gives what an export gives: `tinkersmith export --prove URL`."""
