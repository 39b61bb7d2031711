"""Faults, many times over, in the real workers, with a stand-in for the model. See ``benchmarks.soak.__main__``."""
