"""The search of ``tune``: what it tries, what it adopts, and the preset that it writes."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from xpyd.transport.fabric import FabricConfig
from xpyd.tuning import Adopted, preset_text
from xpyd.worker.search import REFERENCE, TuneSearch, changed, contenders, ratios, winner

AXES: dict[str, dict[str, dict[str, str | None]]] = {"segments": {"64k": {"TCP_TX_SEG_SIZE": "64k"}}}


def search(**values: Any) -> TuneSearch:
    given = {"axes": AXES, "piece_bytes": (4, 16), "payload_bytes": 64, "scatter_below_bytes": 8, "flying_bytes": 32}
    return TuneSearch(**{**given, "num_repeats": 3, "num_final_repeats": 5, "min_gain": 0.02, **values})


def test_a_change_lies_on_top_and_null_leaves_an_option_to_ucx() -> None:
    assert changed({"A": "1", "B": "2"}, {"UCX_A": None, "B": "3", "C": "4"}) == {"B": "3", "C": "4"}


def test_an_option_that_changes_nothing_is_not_tried() -> None:
    made = contenders({"A": "1"}, {"same": {"A": "1"}, "unset": {"B": None}, "other": {"A": "2"}})
    assert made == {REFERENCE: {"A": "1"}, "other": {"A": "2"}}
    assert next(iter(made)) == REFERENCE


def test_ratios_are_paired_by_repeat_and_weigh_patterns_alike() -> None:
    reference = [[1.0, 4.0], [2.0, 8.0]]  # the machine is half as fast in repeat 1
    faster = [[0.5, 2.0], [1.0, 4.0]]
    mixed = [[0.5, 8.0], [1.0, 16.0]]
    assert ratios(faster, reference) == pytest.approx([2.0, 2.0])
    assert ratios(mixed, reference) == pytest.approx([1.0, 1.0])


def test_only_a_clear_winner_is_adopted() -> None:
    timed = {
        REFERENCE: [[1.0]] * 4,
        "clear": [[0.9], [0.9], [0.9], [1.1]],
        "clearer": [[0.8], [0.8], [0.8], [1.1]],
        "by chance": [[0.1], [0.1], [1.1], [1.1]],
        "hardly": [[0.99]] * 4,
    }
    assert winner(timed, 0.02) == "clearer"
    assert winner({name: timed[name] for name in (REFERENCE, "by chance", "hardly")}, 0.02) == REFERENCE
    assert winner({name: timed[name] for name in (REFERENCE, "hardly")}, 0.0) == "hardly"


def test_small_pieces_have_more_in_flight() -> None:
    assert [search().window(size) for size in (4, 16, 64)] == [8, 2, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axes": {}}, r"search\.axes holds"),
        ({"axes": {"poll": {}}}, r"search\.axes holds an axis without options"),
        ({"axes": {"wire": {"tcp": {"UCX_TLS": "tcp"}}}}, r"search\.axes\.wire\.tcp sets \['TLS'\]"),
        ({"axes": {"final": {"a": {"B": "1"}}}}, r"search\.axes\.final"),
        ({"piece_bytes": (24,)}, r"search\.piece_bytes=24 does not divide search\.payload_bytes=64"),
    ],
)
def test_a_search_that_cannot_run_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(**values)


def test_the_preset_is_a_fabric_and_says_where_it_comes_from() -> None:
    begin = FabricConfig("tcp", 25.0, ("tcp",), ("eth1",), {"A": "1"}, message_bytes=4096, strict=True, emulated=True)
    best = {"TCP_MAX_POLL": "1", "TCP_NODELAY": "n"}  # strings that YAML would read as something else
    text = preset_text(begin, best, [Adopted("poll", "1", 1.25)], 1.3)
    found = TypeAdapter(FabricConfig).validate_python(yaml.safe_load(text))
    assert found == FabricConfig("tuned", 25.0, ("tcp",), ("eth1",), best, 4096, True, True)
    assert "1.30 times as fast as fabric=tcp" in text
    assert "poll=1 (1.25)" in text
