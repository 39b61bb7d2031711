"""A few hundred inputs of each target (``make fuzz`` feeds ten thousand), and that a finding would be seen."""

from __future__ import annotations

import copy
import os
import random
import signal
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import drive as driver
from tests.fuzz.drive import drive
from tests.fuzz.mutate import spoil_bytes, spoil_tree
from tests.fuzz.targets import TARGETS, Target
from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.load import load_config

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_taken_or_refused_in_words(name: str) -> None:
    tally = drive(name, 0, 150)
    assert tally.num_inputs == 150
    assert not tally.findings, tally.findings[0].what
    assert tally.num_taken, "some inputs are harmless: the target is not refused for another reason"
    assert tally.num_refused, "some inputs are not"


class Faulty(Target):
    """What a finding can be: an error of another kind, one of a library, a crash, a hang."""

    name = "faulty"
    told: ClassVar[tuple[type[Exception], ...]] = (ValueError,)

    def feed(self, rng: random.Random) -> None:
        match rng.randrange(5):
            case 0:
                raise KeyError("bare")
            case 1:
                int("x")
            case 2:
                os.kill(os.getpid(), signal.SIGKILL)
            case 3:
                while True:
                    pass


def test_every_kind_of_finding_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "faulty", Faulty)
    monkeypatch.setattr(driver, "PATIENCE_S", 1.0)
    tally = drive("faulty", 0, 12)
    assert tally.num_inputs == 12, "after a crash or a hang it goes on with the next"
    kinds = {finding.what.strip().splitlines()[-1].split(":")[0] for finding in tally.findings}
    assert kinds == {"KeyError", "ValueError", "the process died of SIGKILL", "no end within 1 s"}
    assert tally.num_taken


def test_inputs_are_the_same_for_a_seed_and_differ_from_what_they_spoil() -> None:
    tree = composed("serve")
    before = copy.deepcopy(tree)
    spoiled = [spoil_tree(tree, random.Random(seed)) for seed in range(50)]
    assert tree == before
    assert repr(spoiled) == repr([spoil_tree(tree, random.Random(seed)) for seed in range(50)])
    assert sum(each != tree for each in spoiled) > 45
    assert len({spoil_bytes(b"content of a file", random.Random(seed)) for seed in range(50)}) > 40


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(("model", "placement.num_prefill", "workload.classes", "slo", "fabric.ucx")), value=TREES)
def test_any_tree_in_any_place_is_a_configuration_or_refused(path: str, value: Any) -> None:
    tree = copy.deepcopy(SERVE)
    *above, last = path.split(".")
    place = tree
    for key in above:
        place = place[key]
    place[last] = value
    with suppress(ConfigError):
        load_config(tree)


SERVE = composed("serve")
