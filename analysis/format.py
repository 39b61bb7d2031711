"""Numbers as cells of a table: three digits, the unit beside them, and a plain word where there is no number."""

from __future__ import annotations

import math

from analysis.intervals import covers_zero
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval
from xpyd.units import format_bytes, format_s

NONE = "-"


def number(value: float, unit: str) -> str:
    """``0.0107, "s"`` is ``10.7 ms``; ``-`` where there is no value."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "never" if unit == "tokens" else "inf"
    if unit == "s":
        return format_s(value)
    if unit == "share":
        return f"{digits(value * 100)} %"
    if unit == "bytes":
        return format_bytes(value)
    return f"{digits(value)}{' /s' if unit == '1/s' else ''}"


def digits(value: float) -> str:
    """Three digits, never an exponent for a large number."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def interval(found: Interval, unit: str) -> str:
    """``12 [9, 15] ms``; the middle alone where few pairs carry no interval."""
    if not found.known:
        return number(found.mid, unit)
    scale, suffix = _scale(max(abs(found.low), abs(found.high)), unit)
    mid, low, high = (digits(value * scale) for value in (found.mid, found.low, found.high))
    return f"{mid} [{low}, {high}]{suffix}"


def null_finding(found: Interval, unit: str) -> str:
    """The null control in a cell: its interval, ``ok`` where that covers zero."""
    covers = covers_zero(found)
    if covers is None:
        return number(found.mid, unit)
    return f"{interval(found, unit).partition(' ')[2]} {'ok' if covers else 'MISSES 0'}"


def _scale(largest: float, unit: str) -> tuple[float, str]:
    """The factor and suffix that keep the numbers of one interval readable together."""
    if unit == "s":
        seconds = ((1.0, 1.0, " s"), (1e-3, 1e3, " ms"), (0.0, 1e6, " us"))
        return next((scale, suffix) for floor, scale, suffix in seconds if largest >= floor)
    return {"share": (100.0, " %"), "1/s": (1.0, " /s")}.get(unit, (1.0, ""))


def percent(value: float) -> str:
    """An error in percent, signed."""
    if math.isnan(value) or math.isinf(value):
        return NONE
    return f"{value:+.0f} %"


def interval_note(count: int, unit: str = "block pairs") -> str:
    """What the brackets of a table are, or why there are none."""
    if count < MIN_BLOCK_PAIRS:
        return f"No intervals: they need at least {MIN_BLOCK_PAIRS} {unit}, this has {count}."
    return f"[low, high]: 95 % interval from a bootstrap over {count} {unit}, never over tokens."


def sentence(text: str) -> str:
    """``text`` with a capital first letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
