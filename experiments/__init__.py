"""Thin Hydra entry points: ``python -m experiments.<name> ...``. Phases only; the logic is in the library."""
