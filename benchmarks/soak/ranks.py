"""The ranks of one job of the soak.

Usage (under mpirun): python -m mpi4py -m benchmarks.soak.ranks FOLDER ORDER (JSON of ``trial.Order``).
"""

from __future__ import annotations

from benchmarks.soak.no_torch import install

if __name__ == "__main__":
    install()
    from benchmarks.soak.job import main  # only now: it imports what imports torch

    main()
