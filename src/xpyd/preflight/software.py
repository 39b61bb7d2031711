"""Gathers which MPI and which UCX this rank really runs on; asked of the libraries, not of the package index."""

from __future__ import annotations

from pathlib import Path

from xpyd.preflight.facts import UcxFacts

MAPS = Path("/proc/self/maps")


def mpi_library() -> str:
    """The MPI library in its own words, without its build's history: ``Open MPI v5.0.11``."""
    from xpyd.mpi import MPI

    return str(MPI.Get_library_version().splitlines()[0].strip("\0")).partition(",")[0]


def mpi_abi() -> str:
    """What mpi4py was built for and the library that was loaded: ``openmpi ABI, libmpi.so.40``."""
    from xpyd.mpi import MPI

    built_for = Path(MPI.__file__).name.split(".")[1]
    loaded = sorted({name for name in loaded_libraries() if name.startswith("libmpi")})
    kinds = {"openmpi": "openmpi ABI", "mpich": "mpich ABI", "mpiabi": "MPI standard ABI"}
    return ", ".join([kinds.get(built_for, "built for this MPI"), *loaded])


def loaded_libraries(maps: Path = MAPS) -> set[str]:
    """File names of the shared libraries in this process."""
    lines = maps.read_text().splitlines() if maps.exists() else []
    return {Path(line.split()[-1]).name for line in lines if ".so" in line}


def gather_ucx(rank: int, peer_errors: bool) -> UcxFacts:
    """What UCX could use here without any of the fabric's settings; its UCX_ variables do count."""
    from xpyd.transport.base import TransportError

    try:
        from xpyd.transport.ucx import UcxTransport

        transport = UcxTransport(rank, {}, peer_errors)
    except TransportError as error:
        return UcxFacts(error=str(error))
    binding, version = transport.software()
    return UcxFacts(binding, version, tuple(transport.resources()))
