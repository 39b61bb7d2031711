"""Which claims there are: every module in ``families`` has ``CLAIMS``, and a new file there adds its own."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from analysis.claims import families
from analysis.claims.claim import Claim, Measurement
from analysis.load import RunError


def all_claims() -> list[Claim]:
    """Every claim, in the order of the families' names and then of their own lists."""
    names = sorted(module.name for module in pkgutil.iter_modules(families.__path__))
    found: list[Claim] = []
    for name in names:
        found += import_module(f"{families.__name__}.{name}").CLAIMS
    return found


def chosen(only: Sequence[str], known: Sequence[Claim]) -> list[Claim]:
    """Those named, all where none is. Raises RunError for a name that there is not."""
    by_name = {claim.name: claim for claim in known}
    for name in only:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise RunError(f"claims.only={name}: no such claim; {hint}there are: {', '.join(by_name)}")
    return [claim for claim in known if not only or claim.name in only]


def measurements(claims: Sequence[Claim], quick: bool = False) -> list[Measurement]:
    """What these claims need, each once, and each behind what it is measured after."""
    found: dict[str, Measurement] = {}
    for claim in claims:
        for needed in claim.needs:
            for each in _with_earlier(needed):
                if each.in_quick or not quick:
                    known = found.setdefault(each.name, each)
                    assert known == each, f"two measurements are named {each.name}"
    return list(found.values())


def plan(claims: Sequence[Claim], quick: bool) -> dict[str, Any]:
    """What is to be run, as plain data: ``experiments.claims`` reads it as JSON."""
    needed = measurements(claims, quick)
    return {
        "claims": [claim.name for claim in claims],
        "measurements": [
            {
                "name": each.name,
                "experiment": each.experiment,
                "overrides": [*each.overrides, *(each.quick if quick else ())],
                "claims": [claim.name for claim in claims if each in measurements([claim], quick)],
            }
            for each in needed
        ],
    }


def _with_earlier(needed: Measurement) -> Iterator[Measurement]:
    for earlier in needed.after:
        yield from _with_earlier(earlier)
    yield needed
