"""A small emulated machine with Soft-RoCE: InfiniBand verbs on a machine that has none."""
