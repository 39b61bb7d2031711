"""The steps that a calibration times: those that pool and model have room for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.worker.calibrate import CHUNKS, DECODES, MIXED, NUM_REPEATS, _time_steps

SPEC = ModelSpec("x", 2, 64, 4, 2, 32, 96, 101)


@pytest.mark.parametrize(
    ("num_blocks", "longest", "num_left_out"),
    [(100, 32768, 0), (100, 1343, 1), (100, 399, 3), (83, 32768, 1), (30, 32768, 4)],
)
def test_what_fits_is_timed(num_blocks: int, longest: int, num_left_out: int) -> None:
    """Blocks of 16: 1344 tokens take 84 of them, 512 take 32, six contexts of 200 take 78, twelve of 40 take 36."""
    runner = ModelRunner(replace(SPEC, max_position_embeddings=longest), num_blocks, 16)
    found = list(_time_steps(runner, num_blocks))
    assert len(found) == NUM_REPEATS * (len(CHUNKS) + len(DECODES) + len(MIXED) - num_left_out)
    assert max(point.num_prefill_tokens + point.num_cached_tokens for point in found) <= min(longest, 16 * num_blocks)
