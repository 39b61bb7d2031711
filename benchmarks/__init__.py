"""Speed, measured beside its limit in the same run; never in tests. ``python -m benchmarks.<name>`` runs one."""
