"""The labels that every table carries: what was not a machine, a wire or a port of its own is said."""

from __future__ import annotations

import pytest

from xpyd import environment
from xpyd.placement import PlacementConfig, place


@pytest.mark.parametrize(
    ("routes", "labelled"),
    [
        (["rc_verbs/rxe0:1+ud_verbs/rxe0:1"], True),
        (["rc_verbs/bnxt_re0:1"], False),
        (["tcp/rxe0"], False),
        ([], False),
    ],
)
def test_verbs_of_a_driver_without_hardware_are_labelled(
    monkeypatch: pytest.MonkeyPatch, routes: list[str], labelled: bool
) -> None:
    monkeypatch.setattr(environment, "is_software", lambda device: device == "rxe0")
    placement = place(PlacementConfig(num_prefill=1, num_decode=1), ["n1", "n2", "n3"])
    assert ("emulated verbs" in environment.labels(placement, False, routes)) is labelled


@pytest.mark.parametrize(("compiled", "word"), [(True, "compiled"), (False, "torch")])
def test_what_runs_beside_the_products_is_a_version(compiled: bool, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It rounds in its own way: nodes that differ in it are found by the preflight, runs are not pooled."""
    monkeypatch.setattr("xpyd.native.available", lambda: compiled)
    assert environment.versions()["kernels"] == word
    assert environment.machine()["kernels"] == word
