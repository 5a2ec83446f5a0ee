"""Trials that break things on purpose, in numbers too large for the tests.

Each module is a command, such as `python -m benchmarks.reliability.kills`. It ends with status 1 if
a promise of docs/reliability.md is broken, and writes its figures to benchmarks/results.
"""
