"""What each mode exposes of one prompt's hand-off, by hand; whole hides nothing, and no mode beats its floor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.economics.cost import ComputeModel, LinkModel
from xpyd.economics.handoff import Prompt, handoff_times
from xpyd.model.spec import ModelSpec

SPEC = ModelSpec("m", 10, 64, 4, 4, 16, 64, 64)  # 10 layers x 2 x 4 x 16 x 4 bytes = 5,120 bytes a token
COMPUTE = ComputeModel(base_s=0.0, prefill_token_s=1e-4, prefill_pair_s=0.0, decode_seq_s=0.0, context_token_s=0.0)
LINK = LinkModel(alpha_s=1e-3, gamma_s=0.0, bytes_per_s=5_120 * 20_000)  # 20,000 tokens a second; prefill does 10,000
PROMPT = Prompt(SPEC, input_len=1000, chunk_tokens=250, block_size=10, max_piece_bytes=1 << 20)


def test_every_mode_by_hand() -> None:
    """100 ms of prefill; 50 ms on the wire; the last chunk takes 25 ms, and layers leave only while it runs."""
    whole = handoff_times(COMPUTE, LINK, PROMPT, "whole")
    assert whole.prefill_s == pytest.approx(0.1)
    assert whole.exposed_transfer_s == whole.floor_s == whole.transfer_s == pytest.approx(0.051)
    layers = handoff_times(COMPUTE, LINK, PROMPT, "layerwise")
    assert layers.floor_s == pytest.approx(0.001 + 0.005)
    assert layers.exposed_transfer_s == pytest.approx(0.001 + 0.05 - 0.025 * 9 / 10)
    chunks = handoff_times(COMPUTE, LINK, PROMPT, "chunkwise")
    assert chunks.exposed_transfer_s == chunks.floor_s == pytest.approx(0.001 + 0.0125)


def test_a_prompt_in_one_step_hides_all_layers_but_the_last() -> None:
    times = handoff_times(COMPUTE, LINK, replace(PROMPT, chunk_tokens=None), "layerwise")
    assert times.exposed_transfer_s == times.floor_s == pytest.approx(0.006)


def test_a_last_chunk_may_be_short() -> None:
    times = handoff_times(COMPUTE, LINK, replace(PROMPT, input_len=1010), "chunkwise")
    assert times.floor_s == pytest.approx(0.001 + 10 / 20_000)


@settings(deadline=None)
@given(
    st.sampled_from(["whole", "layerwise", "chunkwise"]),
    st.integers(1, 3000),
    st.none() | st.integers(1, 500),
    st.floats(1e6, 1e12),
)
def test_nothing_beats_the_floor_and_nothing_exceeds_the_whole(
    mode: str, input_len: int, chunk_tokens: int | None, rate: float
) -> None:
    prompt = replace(PROMPT, input_len=input_len, chunk_tokens=chunk_tokens)
    times = handoff_times(COMPUTE, replace(LINK, bytes_per_s=rate), prompt, mode)  # type: ignore[arg-type]
    assert times.exposed_transfer_s <= times.transfer_s * (1 + 1e-9)
    if mode != "chunkwise":  # its last chunk may be shorter than the mean one that the flow shop assumes
        assert times.exposed_transfer_s >= times.floor_s * (1 - 1e-9)
