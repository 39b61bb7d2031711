"""The transfer benchmark without a wire: what it moves, and how samples become shares of the limits."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.transfer.cases import LAYER_BYTES, LAYERS, PATTERNS, SCATTERED, Case, Work, cases
from benchmarks.transfer.order import Missing, Order, Sample, read_samples
from benchmarks.transfer.paths import WIRES
from benchmarks.transfer.perftest import _bytes_per_s
from benchmarks.transfer.plain_socket import GATHER_BYTES, SocketCarrier
from benchmarks.transfer.ranks import _write_line
from benchmarks.transfer.ratios import BULK, Samples, targets
from xpyd.kv.layout import Span
from xpyd.units import MIB


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_every_byte_of_each_request_moves_once(pattern: object) -> None:
    case = Case(pattern, num_requests=2, payload_bytes=2 * LAYER_BYTES)  # type: ignore[arg-type]
    work = Work.plan(case, peers=[2, 3], is_source=False)
    assert sum(len(stream.source) for stream in work.streams) == 2 * case.num_pieces
    landed = sorted(span for stream in work.streams for span in stream.destination)
    assert landed[0].offset == 0
    ends = [offset + nbytes for offset, nbytes in landed]
    assert ends[:-1] == [offset for offset, _ in landed[1:]], "areas of sources and requests touch, and do not overlap"
    assert ends[-1] == 2 * case.total_bytes


def test_both_ends_plan_the_same_source_spans() -> None:
    case = Case(SCATTERED, 2, LAYER_BYTES)
    ours, theirs = Work.plan(case, [1], is_source=True), Work.plan(case, [0], is_source=False)
    assert [s.source for s in ours.streams] == [s.source for s in theirs.streams]


def test_scattered_blocks_have_hardly_a_neighbour_at_both_ends() -> None:
    source, destination = SCATTERED.spans(8 * LAYER_BYTES, request=0)
    pairs = list(zip(source, destination, strict=True))
    merged = [
        a for a, b in pairwise(pairs) if all(here[0] + here[1] == there[0] for here, there in zip(a, b, strict=True))
    ]
    assert len(merged) < len(pairs) / 50


def test_quick_measures_fewer_cases_and_two_sides_have_parts_only() -> None:
    full, quick = cases(256 * MIB, 1, quick=False), cases(256 * MIB, 1, quick=True)
    assert {case.name for case in quick} < {case.name for case in full}
    assert full[0] == Case(LAYERS, 1, 256 * MIB)
    assert full[0].num_pieces == 32
    assert {case.payload_bytes for case in cases(256 * MIB, 2, quick=False)} == {64 * MIB}
    for wire in WIRES:
        assert all(case.payload_bytes % LAYER_BYTES == 0 for case in cases(wire.layers_mib * MIB, 1, quick=False))


def test_a_socket_gathers_small_pieces_and_cuts_large_ones() -> None:
    carrier = object.__new__(SocketCarrier)  # without a connection
    carrier._pool = memoryview(np.arange(4 * MIB, dtype=np.uint8).data)
    carrier._call_bytes = GATHER_BYTES
    small = [Span(i * 65_536, 65_536) for i in (5, 3, 9)]
    assert [len(call) for call in carrier._calls(small * 6)] == [16, 2]
    calls = carrier._calls([Span(0, 5 * MIB // 2)])
    assert [view.nbytes for call in calls for view in call] == [MIB, MIB, MIB // 2]


OUTPUT = """\
+--------------+--------------+------------------------------+---------------------+-----------------------+
[thread 0]             512      5.548     9.000     9.000      111.00     111.00        1288        1288
Final:                 300      5.548   776.577   776.577     1200.00    1287.70        1288        1288
"""


def test_the_rate_of_perftest_is_read_in_mebibytes() -> None:
    assert _bytes_per_s(OUTPUT) == 1287.70 * MIB
    assert _bytes_per_s("no route to host\n") is None


def sample(carrier: str, repeat: int, rate: float, case: str = BULK, **values: object) -> Sample:
    given: dict[str, object] = {"cpu_s": None, "small_s": None, "num_pieces": 10, **values}
    return Sample("lo", "1x1", case, carrier, repeat, 1000, seconds=1000 / rate, **given)  # type: ignore[arg-type]


SCATTERED_CASE = f"{SCATTERED.name} x1"
# The machine is half as fast in repeat 1; ucx is always at 0.9 of socket B, and mpi at half of ucx.
SAMPLES = [
    *(sample("socket A", i, rate) for i, rate in enumerate((80, 40, 80))),
    *(sample("socket B", i, rate) for i, rate in enumerate((100, 50, 100))),
    *(sample("ucx", i, rate, cpu_s=2e-6) for i, rate in enumerate((90, 45, 90))),
    *(sample("mpi", i, rate) for i, rate in enumerate((45, 22.5, 45))),
    *(sample("socket B", i, rate, SCATTERED_CASE) for i, rate in enumerate((60, 30, 60))),
    *(sample("ucx", i, rate, SCATTERED_CASE, small_s=1e-5) for i, rate in enumerate((75, 37.5, 75))),
]


def test_shares_are_medians_of_ratios_within_a_repeat() -> None:
    rows = {(row.case, row.carrier): row for row in Samples(SAMPLES).rows()}
    bulk, small = rows[BULK, "ucx"], rows[SCATTERED_CASE, "ucx"]
    assert bulk.pattern_share == bulk.bulk_share == pytest.approx(0.9)
    assert small.pattern_share == pytest.approx(1.25)
    assert small.bulk_share == pytest.approx(0.75)
    assert rows[BULK, "socket A"].bulk_share == pytest.approx(0.8)
    assert bulk.cpu_s_per_gb == pytest.approx(2.0)
    assert bulk.descriptors_per_s == pytest.approx(0.9)
    assert bulk.small_s == small.small_s == 1e-5, "measured with either case, and of the carrier"
    assert rows[BULK, "mpi"].small_s is None


def test_targets_say_what_was_met_missed_and_not_measured() -> None:
    found = {target.text: target for target in targets(Samples(SAMPLES), "lo", shaped=False)}
    assert found["whole layers, share of the limit"].met
    assert found["64 KiB scattered, share of bulk"].met is False
    assert found["over mpi, worst pattern"].found == pytest.approx(2.0)
    assert targets(Samples(SAMPLES), "lo", shaped=True)[0].met is False
    assert [target.met for target in targets(Samples([]), "lo", shaped=False)] == [None, None]


def test_orders_and_samples_survive_their_files(tmp_path: Path) -> None:
    order = Order(
        "lo", "127.0.0.1", 1, 64 * MIB, ("tcp",), "lo", {"A": "1"}, 1 << 20, 1.0, 3, True, (), str(tmp_path / "s")
    )
    order.save(tmp_path / "order.json")
    assert Order.load(tmp_path / "order.json") == order
    rows = [Missing("lo", "1x1", "nixl", "not installed"), SAMPLES[0]]
    with (tmp_path / "s").open("w") as file:
        for row in rows:
            _write_line(file, row)
    assert list(read_samples(tmp_path / "s")) == rows
    assert list(read_samples(tmp_path / "none")) == []
