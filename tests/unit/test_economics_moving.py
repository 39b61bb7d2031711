"""What moving KV costs the steps beside it: the fit on planted hand-offs, and the points that a probe's rows make."""

from __future__ import annotations

import pytest

from xpyd.economics.moving import UNKNOWN, BesidePoint, MovingModel, fit_moving
from xpyd.kv.layout import PoolLayout
from xpyd.records import ReceiptRow, ReceivingGapRow
from xpyd.worker.beside import loads, received_points, sent_points, sweep_for
from xpyd.worker.load import Load, SourceStep
from xpyd.worker.transfer_config import TransferConfig

MODEL = MovingModel(2e-4, 1.5e-9, 1e-4, 0.5e-9)
MIB = 1 << 20


def planted(sends: bool, num_bytes: int, batch: int, stalled_s: float = 0.0) -> BesidePoint:
    """Steps of 3 ms and 0.3 ms a sequence on a link of 50 MB/s, with what MODEL adds to them."""
    usual_s = 3e-3 + 0.3e-3 * batch
    num_steps = round(num_bytes / 50e6 / usual_s) + 1
    step_s, byte_s = (MODEL.send_step_s, MODEL.send_byte_s) if sends else (MODEL.receive_step_s, MODEL.receive_byte_s)
    seconds = num_steps * (usual_s + step_s) + num_bytes * byte_s + stalled_s
    return BesidePoint(sends, seconds, usual_s, num_steps, num_bytes, batch, 96 * sends)


def test_a_known_cost_is_found_and_one_stalled_hand_off_changes_nothing() -> None:
    settings = [(sends, size, batch) for sends in (False, True) for size in (MIB, 8 * MIB) for batch in (1, 6)]
    points = [planted(*setting) for setting in settings for _ in range(3)]
    points += [planted(False, MIB, 1, stalled_s=0.5), planted(True, 8 * MIB, 6, stalled_s=0.5)]
    found = fit_moving(points)
    for name in MovingModel.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(MODEL, name), rel=1e-6), name


def test_what_was_not_measured_costs_nothing() -> None:
    assert fit_moving([]) == UNKNOWN
    only = fit_moving([planted(False, size, 1) for size in (MIB, 8 * MIB)])
    assert (only.send_step_s, only.send_byte_s) == (0.0, 0.0)
    assert only.receive_byte_s > 0
    faster = [BesidePoint(False, 0.9, 0.1, 10, size, 1, 0) for size in (MIB, 8 * MIB)]
    assert fit_moving(faster) == UNKNOWN, "no cost is below zero"


def gap(payload: int, batch: int, prefill: int, repeat: int, seconds: float) -> ReceivingGapRow:
    return ReceivingGapRow(2, batch, prefill, payload, repeat, 0, seconds)


def test_each_hand_off_is_held_against_the_same_batch_alone_in_its_repeat() -> None:
    alone = [gap(0, 1, 0, 0, s) for s in (0.003, 0.004, 0.009)] + [gap(0, 1, 0, 1, 0.006), gap(0, 1, 96, 0, 0.05)]
    beside = [gap(MIB, 1, 0, 0, 0.005), gap(MIB, 1, 0, 0, 0.006), gap(MIB, 1, 0, 1, 0.008), gap(MIB, 1, 96, 0, 0.06)]
    rows = [ReceiptRow(1, 2, 1, 0, MIB, 8, 0, 0.011), *alone, *beside]
    assert received_points(rows) == [
        BesidePoint(False, pytest.approx(0.011), 0.004, 2, MIB, 1, 0),
        BesidePoint(False, 0.008, 0.006, 1, MIB, 1, 0),
        BesidePoint(False, 0.06, 0.05, 1, MIB, 1, 96),
    ]


def test_a_source_is_timed_by_its_own_steps() -> None:
    quiet, moving = Load(0, 6, 96), Load(64, 6, 96)
    steps = [SourceStep(quiet, 0, False, 0.02), SourceStep(moving, 0, False, 0.04), SourceStep(moving, 0, True, 0.05)]
    assert sent_points(steps, {64: MIB}) == [BesidePoint(True, 0.05, pytest.approx(0.03), 1, MIB, 6, 96)]


def test_the_probe_fits_the_pool() -> None:
    layout, config = PoolLayout(6, 512, 1 << 14), TransferConfig()
    sweep = sweep_for(layout, 16, config, 3)
    assert sweep is not None
    assert [tokens // 16 * 6 << 14 for tokens in sweep.prompt_tokens] == [21 * 6 << 14, 85 * 6 << 14]
    assert len(loads(sweep)) == 3 * 2 * 2
    assert all(load.num_decode_seqs for load in loads(sweep))
    small = sweep_for(PoolLayout(6, 30, 1 << 14), 16, config, 3)
    assert small is not None
    assert small.prompt_tokens == (12 * 16,)
    assert small.num_blocks(16) == 30
    assert sweep_for(PoolLayout(6, 18, 1 << 14), 16, config, 3) is None
