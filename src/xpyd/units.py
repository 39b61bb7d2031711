"""Units: the only place where bits become bytes and nanoseconds become seconds.

Link rates in configuration are **bits** per second (Gb/s, suffix ``_gbps``); payloads are **bytes**; measured
bandwidth is decimal bytes per second (suffix ``_gbytes_s``); stamps are integer nanoseconds (suffix ``_ns``).
"""

from __future__ import annotations

BITS_PER_BYTE = 8
GIGA = 1e9
NS_PER_S = 1_000_000_000
MIB = 1024**2


def gbps_to_bytes_per_s(rate_gbps: float) -> float:
    """A link rate in Gb/s as bytes per second: ``rate * 1e9 / 8``."""
    return rate_gbps * GIGA / BITS_PER_BYTE


def bytes_per_s_to_gbps(rate_bytes_per_s: float) -> float:
    """Bytes per second as Gb/s, the inverse of :func:`gbps_to_bytes_per_s`."""
    return rate_bytes_per_s * BITS_PER_BYTE / GIGA


def s_to_ns(seconds: float) -> int:
    """Seconds as whole nanoseconds, rounded to nearest."""
    return round(seconds * NS_PER_S)


def format_bytes(num_bytes: float) -> str:
    """A byte count for people, in binary units: ``268435456`` is ``256 MiB``."""
    value = float(num_bytes)
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {suffix}"
        value /= 1024
    return f"{value:.4g} TiB"


def format_s(seconds: float) -> str:
    """A duration for people, with the unit that keeps three digits readable: ``0.0107`` is ``10.7 ms``."""
    magnitude = abs(seconds)
    if magnitude >= 1 or magnitude == 0:
        return f"{seconds:.3g} s"
    if magnitude >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} us"
