"""Which claims of the field are put to the test, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClaimsConfig:
    """``only``: names of claims, as ``python -m analysis.claims --list`` shows them; empty: all.

    ``quick``: fewer requests, fewer rates, and a rival that is not tuned.
    """

    only: tuple[str, ...] = ()
    quick: bool = False
