"""The wire alone: every transport beside what the wire can do (a plain socket, ucx_perftest), on real KV patterns.

``make bench-transfer`` runs it; ``python -m benchmarks.transfer --help`` lists the options.
"""
