"""What a step does on a CPU beside its matrix products, in C: norms, rotations, gates, attention of decodes in place.

``pip install`` compiles ``kernels.c`` where it finds a C compiler. Without one the same is done by torch, slower: see
``available``. Everything here takes addresses, and knows nothing of tensors; callers check device, type and layout.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.util import find_spec

LANES = 16  # heads as wide as this, or a multiple of it, can attend
OFF = "XPYD_NATIVE"  # set to 0: as if it had not been compiled

Kernels = ctypes.CDLL
_ADDRESS, _NUMBER, _HALF = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    "xpyd_norm": (_HALF, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, ctypes.c_float),
    "xpyd_gate": (_HALF, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER),
    "xpyd_rotate": (_HALF, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _NUMBER, _NUMBER),
    "xpyd_store": (_ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, *[_NUMBER] * 7),
    "xpyd_attend": (
        *(_HALF, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _NUMBER),
        _ADDRESS,
    ),
}


class Paging(ctypes.Structure):
    """Where KV lies in a layer of the pool, ``struct paging`` of kernels.c; strides count numbers."""

    _fields_ = (
        *((name, _NUMBER) for name in ("num_heads", "num_kv_heads", "size", "block_size")),
        *((f"{name}_stride", _NUMBER) for name in ("block", "plane", "token", "head")),
        ("scale", ctypes.c_float),
    )


@cache
def kernels() -> Kernels | None:
    """The compiled functions, None where they were not compiled or are switched off."""
    found = find_spec("xpyd.native._kernels")
    if found is None or found.origin is None or os.environ.get(OFF) == "0":
        return None
    library = ctypes.CDLL(found.origin)
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def available() -> bool:
    """Whether steps on a CPU run the compiled functions."""
    return kernels() is not None
