"""The codec experiment's parts: what it computes from logits, its bill in closed form, its prompts, and a whole run."""

from __future__ import annotations

import json
from dataclasses import replace
from math import inf, isnan, log
from pathlib import Path

import numpy as np
import pytest

from xpyd.economics.codecs import CodecCost, codec_breakeven_bytes_per_s, coded_bill_s, direct_bill_s
from xpyd.economics.cost import LinkModel
from xpyd.kv.codec.config import CodecConfig
from xpyd.model.spec import ModelSpec
from xpyd.records import DivergenceRow
from xpyd.worker.codecs import CodecProbe
from xpyd.worker.divergence import kl_nats, logit_errors, margins
from xpyd.worker.prompts import place_prompts
from xpyd.worker.sweeps import CodecSweep

MICRO = ModelSpec("micro", 2, 64, 4, 2, 16, 128, 256, 4096)
INT8 = CodecConfig("int8", "block")
SWEEP = CodecSweep(
    codecs=(CodecConfig(), INT8, CodecConfig("zstd")),
    input_lens=(20, 37),
    num_prompts=2,
    output_len=6,
    num_repeats=2,
    block_size=8,
    rate_gbps=10.0,
    alpha_s=1e-5,
    gamma_s=1e-6,
    max_piece_bytes=4096,
)
# 100 MB that become 40: 0.06 s of codec, 30 pieces instead of 60
COST = CodecCost(raw_bytes=100e6, encoded_bytes=40e6, num_raw_pieces=60, num_pieces=30, encode_s=0.04, decode_s=0.02)


def test_kl_by_hand() -> None:
    exact, coded = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.25, 0.75], [0.9, 0.1]])
    assert kl_nats(exact, coded) == pytest.approx([0.5 * log(2) + 0.5 * log(2 / 3), 0.0])
    assert kl_nats(exact + 7.0, coded) == pytest.approx(kl_nats(exact, coded)), "logits have no zero"
    certain = np.array([[0.0, -np.inf]])
    assert kl_nats(certain, np.log([[0.5, 0.5]])) == pytest.approx([log(2)])


def test_logit_errors_and_margins_by_hand() -> None:
    largest, mean = logit_errors(np.array([[1.0, 2.0, 4.0]]), np.array([[1.5, 2.0, 3.0]]))
    assert (largest.tolist(), mean.tolist()) == ([1.0], [0.5])
    assert margins(np.array([[1.0, 4.0, 3.25], [2.0, 2.0, 0.0]])).tolist() == [0.75, 0.0]


def test_the_bill_and_its_breakeven_by_hand() -> None:
    link = LinkModel(alpha_s=1e-3, gamma_s=1e-4, bytes_per_s=1e9)
    assert direct_bill_s(link, COST) == pytest.approx(0.001 + 0.006 + 0.1)
    assert coded_bill_s(link, COST) == pytest.approx(0.06 + 0.001 + 0.003 + 0.04)
    breakeven = codec_breakeven_bytes_per_s(link.gamma_s, COST)
    assert breakeven == pytest.approx(60e6 / (0.06 - 30 * 1e-4))
    at = replace(link, bytes_per_s=breakeven)
    assert coded_bill_s(at, COST) == pytest.approx(direct_bill_s(at, COST))


def test_breakevens_at_the_ends() -> None:
    assert codec_breakeven_bytes_per_s(0.0, replace(COST, encoded_bytes=101e6)) == 0.0
    assert codec_breakeven_bytes_per_s(0.01, COST) == inf, "the saved pieces alone pay"
    nothing = replace(COST, encoded_bytes=100e6, encode_s=0.0, decode_s=0.0)
    assert isnan(codec_breakeven_bytes_per_s(0.0, nothing))


def test_prompts_have_blocks_of_their_own() -> None:
    prompts = place_prompts(SWEEP, vocab_size=256)
    assert [len(prompt.tokens) for prompt in prompts] == [20, 20, 37, 37]
    assert [(len(prompt.source), len(prompt.landing)) for prompt in prompts] == [(3, 4), (3, 4), (5, 6), (5, 6)]
    taken = [block for prompt in prompts for block in (*prompt.source, *prompt.landing)]
    assert sorted(taken) == list(range(SWEEP.num_blocks))
    assert prompts[2].used_in_last(8) == 5
    assert prompts[0].tokens != prompts[1].tokens


def test_prompts_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([[1, 2], list(range(100, 140)), list(range(50, 90))]))
    sweep = replace(SWEEP, prompts=str(path))
    tokens = [prompt.tokens for prompt in place_prompts(sweep, vocab_size=256)]
    assert tokens == [list(range(a, a + n)) for n in (20, 37) for a in (100, 50)]
    with pytest.raises(ValueError, match=r"2 of its 3 prompts have 20 tokens or more, sweep.num_prompts=3"):
        place_prompts(replace(sweep, num_prompts=3), vocab_size=256)
    with pytest.raises(ValueError, match=r"prompt 1 holds 128, .* from 0 to 127"):
        place_prompts(sweep, vocab_size=128)
    for text in ("[[1, 2", '{"a": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"sweep.prompts=.*give a JSON list"):
            place_prompts(sweep, vocab_size=256)


def test_sweeps_without_a_null_control_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep.codecs=int8 per block lacks none"):
        replace(SWEEP, codecs=(INT8,))
    with pytest.raises(ValueError, match=r"names int8 per block twice"):
        replace(SWEEP, codecs=(CodecConfig(), INT8, INT8))


@pytest.fixture(scope="module")
def probe() -> CodecProbe:
    return CodecProbe(MICRO, SWEEP)


def test_every_codec_is_timed_on_every_prompt(probe: CodecProbe) -> None:
    rows = list(probe.time())
    assert len(rows) == 3 * 4 * SWEEP.num_repeats
    by_codec = {row.codec: row for row in rows if row.prompt == 3}
    raw_bytes = 2 * 5 * 2 * 8 * 2 * 16 * 4  # layers, blocks, K and V, tokens, heads, head_dim, float32
    assert by_codec["none"].raw_bytes == by_codec["none"].encoded_bytes == raw_bytes
    assert by_codec["int8 per block"].encoded_bytes == raw_bytes // 4 + 2 * 5 * 2 * 4
    assert 0 < by_codec["zstd 1 shuffled"].encoded_bytes < raw_bytes
    assert all(row.encode_s > 0 and row.decode_s > 0 and row.wall_s > 0 for row in rows)


def differing(rows: list[DivergenceRow]) -> int:
    return sum(row.exact_token != row.coded_token for row in rows)


def test_exact_codecs_change_nothing_and_lossy_ones_little(probe: CodecProbe) -> None:
    exact = probe.exact()
    for config in SWEEP.codecs:
        rows = list(probe.diverge(config, exact))
        assert [(row.index, row.prompt) for row in rows] == [(i, p) for i in range(1, 6) for p in range(4)]
        assert [row.exact_token for row in rows] == [int(t) for step in exact.tokens for t in step]
        errors = [row.max_logit_error for row in rows]
        if config == INT8:
            assert 0 < max(errors) < 0.5 * np.mean([row.logit_std for row in rows])
            assert all(0 < row.kl_nats < 0.1 for row in rows)
        else:
            assert errors == [0.0] * len(rows)
            assert [row.kl_nats for row in rows] == [0.0] * len(rows)
            assert differing(rows) == 0
            assert all(row.forced_token == row.exact_token for row in rows)


def test_a_damaged_payload_would_show(probe: CodecProbe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: with one layer's K halved, codec none no longer equals the exact arm."""
    exact = probe.exact()
    clean = probe._decode

    def damage(config: CodecConfig, number: int, sizes: list[int]) -> None:
        clean(config, number, sizes)
        probe._cache.pool[1, probe._prompts[number].landed, 0] *= 0.5

    monkeypatch.setattr(probe, "_decode", damage)
    rows = list(probe.diverge(CodecConfig(), exact))
    assert min(row.kl_nats for row in rows) > 0
    assert differing(rows) > 0
