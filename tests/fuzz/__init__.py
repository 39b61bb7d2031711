"""Hostile input, many times over: see ``python -m tests.fuzz --help``."""
