"""What a step does on a CPU, in C: norms, rotations, gates, attention in place, products; or a whole step of them.

``pip install`` compiles ``kernels.c`` where it finds a C compiler. Without one the same is done by torch, slower: see
``available``. Everything here takes addresses, and knows nothing of tensors; callers check device, type and layout.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from importlib.util import find_spec

LANES = 16  # heads as wide as this, or a multiple of it, can attend
COLUMNS = 2 * LANES  # of a panel of weights
ROWS = 64  # of a step that run together from one product to the next
HUGE_PAGE_BYTES = 2 << 20
OFF = "XPYD_NATIVE"  # set to 0: as if it had not been compiled

Kernels = ctypes.CDLL
_ADDRESS, _NUMBER, _HALF, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_ARGUMENTS = {
    "xpyd_norm": (_HALF, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _FLOAT),
    "xpyd_gate": (_HALF, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER),
    "xpyd_rotate": (_HALF, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _NUMBER, _NUMBER),
    "xpyd_store": (_ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, *[_NUMBER] * 7),
    "xpyd_attend": (
        *(_HALF, _ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _ADDRESS, _NUMBER, _ADDRESS, _NUMBER, _NUMBER),
        _ADDRESS,
    ),
    "xpyd_multiplies": (),
    "xpyd_multiply": (_ADDRESS, _NUMBER, _NUMBER, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS, ctypes.c_int),
    "xpyd_largest": (_ADDRESS, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS),
    "xpyd_advance": (_ADDRESS, _ADDRESS, _NUMBER),
    "xpyd_run": (_ADDRESS, _ADDRESS),
    "xpyd_follow": (_ADDRESS,),
    "xpyd_book": (_ADDRESS, _NUMBER, _NUMBER),
    "xpyd_again": (_ADDRESS, _ADDRESS, _ADDRESS, _NUMBER),
    "xpyd_tell": (_ADDRESS, ctypes.c_int),
}


class Paging(ctypes.Structure):
    """Where KV lies in a layer of the pool, ``struct paging`` of kernels.c; strides count numbers."""

    _fields_ = (
        *((name, _NUMBER) for name in ("num_heads", "num_kv_heads", "size", "block_size")),
        *((f"{name}_stride", _NUMBER) for name in ("block", "plane", "token", "head")),
        ("scale", _FLOAT),
    )


class Matrix(ctypes.Structure):
    """Weights in panels, see ``kernels_product.h``."""

    _fields_ = (("panels", _ADDRESS), ("num_out", _NUMBER), ("num_in", _NUMBER))


class Layer(ctypes.Structure):
    """This and what follows: see ``kernels_step.h``."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("input_norm", "qkv_bias", "q_norm", "k_norm", "post_norm")),
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
    )


class Decoder(ctypes.Structure):
    _fields_ = (
        *((name, _ADDRESS) for name in ("embedding", "norm", "frequencies")),
        ("layers", ctypes.POINTER(Layer)),
        ("head", Matrix),
        ("pool", _ADDRESS),
        *((name, _NUMBER) for name in ("num_layers", "hidden", "inner", "layer_stride", "window")),
        ("paging", Paging),
        ("eps", _FLOAT),
        ("magnitude", _FLOAT),
        ("num_threads", ctypes.c_int),
    )


class Step(ctypes.Structure):
    """Segments are four numbers each: first row, rows, first position, and where its blocks begin in ``tables``."""

    _fields_ = (
        *((name, _NUMBER) for name in ("num_rows", "num_segments", "num_samples")),
        *((name, _ADDRESS) for name in ("tokens", "tables", "sampled", "segments")),
        *((name, _ADDRESS) for name in ("x", "qkv", "attended", "angles", "normed", "inner", "gated")),
        *((name, _ADDRESS) for name in ("last", "logits")),
    )


class Ledger(ctypes.Structure):
    """Of steps that follow on one of decodes."""

    _fields_ = (
        ("decoder", ctypes.POINTER(Decoder)),
        ("step", ctypes.POINTER(Step)),
        ("num_rows", _NUMBER),
        *((name, _ADDRESS) for name in ("drawn", "margins", "tokens", "segments", "history", "stamps", "message")),
        *((name, _NUMBER) for name in ("num_steps", "offset_ns")),
    )


class Inbox(ctypes.Structure):
    """This and what follows: see ``kernels_tell.h``."""

    _fields_ = (
        *((name, _ADDRESS) for name in ("test", "request", "status")),
        ("come", ctypes.c_int),
        ("error", ctypes.c_int),
    )


class Line(ctypes.Structure):
    _fields_ = (
        ("inbox", ctypes.POINTER(Inbox)),
        *((name, _ADDRESS) for name in ("start", "page", "copies", "requests")),
        *((name, _NUMBER) for name in ("num_bytes", "num_copies", "num_sent")),
        ("error", ctypes.c_int),
    )


@cache
def kernels() -> Kernels | None:
    """The compiled functions, None where they were not compiled or are switched off."""
    found = find_spec("xpyd.native._kernels")
    if found is None or found.origin is None or os.environ.get(OFF) == "0":
        return None
    library = ctypes.CDLL(found.origin)
    if not all(hasattr(library, name) for name in _ARGUMENTS):
        raise RuntimeError(f"{found.origin} was compiled from other sources than these: run pip install -e . again")
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes = arguments
    return library


def available() -> bool:
    """Whether steps on a CPU run the compiled functions."""
    return kernels() is not None


def multiplying() -> Kernels | None:
    """The compiled functions where their products of float32 are fast: not without vectors of this processor."""
    found = kernels()
    return found if found is not None and found.xpyd_multiplies() else None


def use_huge_pages(address: int, num_bytes: int) -> None:
    """Ask for pages of 2 MiB for memory that is not written yet: what a step reads in order then misses few of them.

    A wish: where the system does not have them, nothing changes.
    """
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    length = address + num_bytes - begin
    if length >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        ctypes.CDLL(None).madvise(_ADDRESS(begin), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
