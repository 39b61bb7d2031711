"""Codecs: bit for bit where they promise it, inside their bounds where they round, refused where neither holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from omegaconf import OmegaConf

from xpyd.config.compare import Compare
from xpyd.config.load import load_config
from xpyd.kv.codec.base import BlockShape, Codec, CodecError
from xpyd.kv.codec.config import CodecConfig
from xpyd.kv.codec.registry import CODECS, build_codec
from xpyd.worker.transfer_config import TransferConfig

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EXACT = [
    CodecConfig(),
    CodecConfig("zstd"),
    CodecConfig("zstd", level=-3, shuffle=False),
    CodecConfig("lz4"),
    CodecConfig("lz4", shuffle=False),
]
INT8 = [CodecConfig("int8", "block"), CodecConfig("int8", "head")]
FP8 = [CodecConfig("fp8", "block"), CodecConfig("fp8", "head")]
LOSSY = [*INT8, *FP8]
TINY = 2.0**-126  # the smallest scale: float32's smallest normal number


def name(value: object) -> str | None:
    return value.label if isinstance(value, CodecConfig) else None


def round_trip(codec: Codec, blocks: torch.Tensor) -> torch.Tensor:
    """What arrives, through a payload of exactly the bytes that were written; both ends are fresh."""
    staging = torch.full((codec.max_encoded_bytes(len(blocks)) + 64,), 0xAA, dtype=torch.uint8)
    nbytes = codec.encode(blocks, staging)
    assert nbytes <= codec.max_encoded_bytes(len(blocks))
    assert not codec.fixed_rate or nbytes == codec.max_encoded_bytes(len(blocks))
    assert (staging[max(nbytes, codec.max_encoded_bytes(len(blocks))) :] == 0xAA).all(), "wrote beyond its bytes"
    landed = torch.full_like(blocks, 7.0)
    build_codec(codec.config, codec.shape).decode(staging[:nbytes].clone(), landed)
    return landed


def magnitudes(blocks: torch.Tensor, config: CodecConfig) -> torch.Tensor:
    """max |x| of the values that share a scale, by the definition and not by the codec's code; float64."""
    dims = (2, 4) if config.granularity == "head" else (2, 3, 4)
    return blocks.double().abs().amax(dims, keepdim=True)


@st.composite
def any_bits(draw: st.DrawFn) -> tuple[BlockShape, torch.Tensor]:
    """Blocks of arbitrary bits: NaN payloads, infinities, denormals and both zeros are among them."""
    shape = draw(shapes())
    count = draw(st.integers(1, 3))
    dims = (count, shape.num_planes, shape.block_size, shape.num_kv_heads, shape.head_dim * shape.dtype.itemsize)
    raw = draw(hnp.arrays(np.uint8, dims) | st.integers(0, 2**32).map(lambda seed: random_bytes(seed, dims)))
    return shape, torch.from_numpy(raw).view(shape.dtype)


def random_bytes(seed: int, dims: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, dims, np.uint8)


@st.composite
def shapes(draw: st.DrawFn) -> BlockShape:
    size, heads, half = draw(st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 4)))
    return BlockShape(size, heads, 2 * half, draw(st.sampled_from(DTYPES)), draw(st.integers(1, 2)))


@st.composite
def finite(draw: st.DrawFn) -> tuple[BlockShape, torch.Tensor]:
    """Blocks of finite values, from the dtype's denormals to its largest, each block and head of its own magnitude."""
    shape = draw(shapes())
    limit = float(torch.finfo(shape.dtype).max)
    dims = (draw(st.integers(1, 3)), *shape.dims)
    kind = np.float32
    # 0.0 as the filler: whole blocks of zeros beside others
    values = draw(hnp.arrays(kind, dims, elements=st.floats(-limit, limit, width=32), fill=st.just(0.0)))
    scale = np.float32(10.0) ** draw(hnp.arrays(np.int64, (*dims[:2], 1, dims[3], 1), elements=st.integers(-44, 0)))
    blocks = torch.from_numpy((values * scale).astype(kind)).to(shape.dtype)
    return shape, torch.where(blocks.isfinite(), blocks, 0.0)


@pytest.mark.parametrize("config", EXACT, ids=name)
@settings(max_examples=40, deadline=None)
@given(case=any_bits())
def test_exact_codecs_return_every_bit(config: CodecConfig, case: tuple[BlockShape, torch.Tensor]) -> None:
    shape, blocks = case
    landed = round_trip(build_codec(config, shape), blocks)
    assert torch.equal(landed.view(torch.uint8), blocks.view(torch.uint8))


def own_rounding(decoded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """At most half a unit in the last place of the pool's dtype, twice over for the arithmetic in float32."""
    info = torch.finfo(dtype)
    return decoded.double().abs() * info.eps + float(info.smallest_normal) * info.eps


@pytest.mark.parametrize("config", INT8, ids=name)
@settings(max_examples=80, deadline=None)
@given(case=finite())
def test_int8_errs_by_half_a_scale(config: CodecConfig, case: tuple[BlockShape, torch.Tensor]) -> None:
    shape, blocks = case
    landed = round_trip(build_codec(config, shape), blocks)
    scale = (magnitudes(blocks, config) / 127).clamp(min=TINY)
    error = (landed.double() - blocks.double()).abs()
    assert (error <= scale * 0.50002 + own_rounding(landed, shape.dtype)).all()


@pytest.mark.parametrize("config", FP8, ids=name)
@settings(max_examples=80, deadline=None)
@given(case=finite())
def test_fp8_errs_by_a_sixteenth(config: CodecConfig, case: tuple[BlockShape, torch.Tensor]) -> None:
    shape, blocks = case
    landed = round_trip(build_codec(config, shape), blocks)
    scale = (magnitudes(blocks, config) / 448).clamp(min=TINY)
    error = (landed.double() - blocks.double()).abs()
    bound = torch.maximum(blocks.double().abs() / 16, scale / 1024) * 1.00002
    assert (error <= bound + own_rounding(landed, shape.dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", LOSSY, ids=name)
def test_the_largest_and_zero_come_back(config: CodecConfig, dtype: torch.dtype) -> None:
    """A block of zeros stays zeros; the largest magnitudes of a head keep sign and size, up to the dtype's maximum."""
    shape = BlockShape(4, 2, 8, dtype)
    blocks = torch.zeros((3, *shape.dims), dtype=dtype)
    blocks[1, 0, 2, 1, 3] = torch.finfo(dtype).max
    blocks[1, 1, 0, 0, 0] = -2.5
    landed = round_trip(build_codec(config, shape), blocks)
    assert landed.isfinite().all()
    assert torch.allclose(landed.float(), blocks.float(), rtol=max(2 * torch.finfo(dtype).eps, 2e-6), atol=0)


@pytest.mark.parametrize("config", LOSSY, ids=name)
def test_next_to_nothing_becomes_zero_codes(config: CodecConfig) -> None:
    """Zeros and the smallest denormals, for which no scale of their own exists: code 0, never NaN or a turned sign."""
    shape = BlockShape(4, 2, 8, torch.float32)
    codec = build_codec(config, shape)
    blocks = torch.zeros((2, *shape.dims))
    blocks[1] = 190 * 2.0**-149
    staging = torch.empty(codec.max_encoded_bytes(2), dtype=torch.uint8)
    codec.encode(blocks, staging)
    assert not staging.view(2, -1)[:, -shape.num_values :].any()
    assert not round_trip(codec, blocks).any()


@pytest.mark.parametrize("config", LOSSY, ids=name)
def test_scales_are_shared_as_configured(config: CodecConfig) -> None:
    """A large value costs its own scale group its small values, and nobody else's: neither K and V nor blocks share."""
    shape = BlockShape(4, 2, 8, torch.float32)
    blocks = torch.full((2, *shape.dims), 0.37)
    blocks[0, 1, 0, 1, 0] = 1e9  # V of block 0, head 1
    kept = (round_trip(build_codec(config, shape), blocks) - blocks).abs() < 0.02
    assert kept[1].all()
    assert kept[0, 0].all()
    assert not kept[0, 1, 1:, 1].any()
    assert kept[0, 1, :, 0].all() == (config.granularity == "head")


def test_fp8_is_torchs_e4m3fn() -> None:
    """All 254 finite codes, decoded by our bit moves and by torch."""
    codes = torch.tensor([c for c in range(256) if c & 0x7F != 0x7F], dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float()
    shape = BlockShape(127, 1, 1, torch.float32)  # K and V: 254 values
    codec = build_codec(CodecConfig("fp8", "block"), shape)
    ones = torch.ones(2, dtype=torch.float32).view(torch.uint8)
    landed = torch.empty((1, *shape.dims))
    codec.decode(torch.cat((ones, codes)), landed)
    assert torch.equal(landed.flatten(), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("config", LOSSY, ids=name)
def test_values_without_a_scale_are_refused_by_place(config: CodecConfig, bad: float) -> None:
    shape = BlockShape(4, 2, 8, torch.bfloat16)
    blocks = torch.randn(3, *shape.dims).to(torch.bfloat16)
    blocks[2, 1, 3, 0, 5] = bad
    codec = build_codec(config, shape)
    with pytest.raises(CodecError, match=r"V of block 2 of 3 holds NaN or infinity.*codec=none"):
        codec.encode(blocks, torch.empty(codec.max_encoded_bytes(3), dtype=torch.uint8))


def test_a_latent_without_a_scale_is_called_by_its_name() -> None:
    codec = build_codec(CodecConfig("int8"), BlockShape(4, 1, 8, torch.float32, num_planes=1))
    blocks = torch.full((2, *codec.shape.dims), float("nan"))
    with pytest.raises(CodecError, match=r"the latent of block 0 of 2 holds NaN or infinity"):
        codec.encode(blocks, torch.empty(codec.max_encoded_bytes(2), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("config", "nbytes"),
    [
        (CodecConfig(), 5 * 1024),
        (CodecConfig("int8", "block"), 5 * (512 + 2 * 4)),
        (CodecConfig("int8", "head"), 5 * (512 + 8 * 4)),
        (CodecConfig("fp8", "head"), 5 * (512 + 8 * 4)),
    ],
    ids=name,
)
def test_fixed_rates_are_known_beforehand(config: CodecConfig, nbytes: int) -> None:
    codec = build_codec(config, BlockShape(8, 4, 8, torch.bfloat16))  # 512 values
    assert codec.fixed_rate
    assert codec.max_encoded_bytes(5) == nbytes


@pytest.mark.parametrize("config", LOSSY, ids=name)
def test_any_run_of_blocks_is_a_payload(config: CodecConfig) -> None:
    """A fixed-rate payload may be cut between blocks: pieces travel and land alone, at any offset of the staging."""
    shape = BlockShape(4, 2, 8, torch.bfloat16)
    codec = build_codec(config, shape)
    blocks = torch.randn(5, *shape.dims).to(torch.bfloat16)
    whole, one = codec.max_encoded_bytes(5), codec.max_encoded_bytes(1)
    staging = torch.empty(whole + 3, dtype=torch.uint8)
    codec.encode(blocks, staging[3:])
    together, pieces = torch.empty_like(blocks), torch.empty_like(blocks)
    codec.decode(staging[3:], together)
    for begin, end in ((0, 1), (1, 4), (4, 5)):
        codec.decode(staging[3 + begin * one : 3 + end * one], pieces[begin:end])
    assert torch.equal(pieces, together)
    assert not torch.equal(pieces, torch.zeros_like(blocks))


@pytest.mark.parametrize("config", [*EXACT, *LOSSY], ids=name)
def test_encoding_leaves_the_pool_alone(config: CodecConfig) -> None:
    shape = BlockShape(4, 2, 8, torch.float32)
    codec = build_codec(config, shape)
    blocks = torch.randn(2, *shape.dims)
    before = blocks.clone()
    codec.encode(blocks, torch.empty(codec.max_encoded_bytes(2), dtype=torch.uint8))
    assert torch.equal(blocks, before)


@pytest.mark.parametrize("config", [*EXACT, *LOSSY], ids=name)
def test_a_payload_of_another_size_is_refused(config: CodecConfig) -> None:
    shape = BlockShape(4, 2, 8, torch.float32)
    codec = build_codec(config, shape)
    staging = torch.empty(codec.max_encoded_bytes(3), dtype=torch.uint8)
    nbytes = codec.encode(torch.randn(3, *shape.dims), staging)
    for data, num_blocks in ((staging[: nbytes - 5], 3), (staging[:nbytes], 2), (staging[:nbytes], 4)):
        with pytest.raises(CodecError, match="both ranks use the same"):
            codec.decode(data, torch.empty((num_blocks, *shape.dims)))


def test_compression_shrinks_what_repeats() -> None:
    """Shuffled, the exponents of like magnitudes compress though no value repeats."""
    shape = BlockShape(16, 4, 32, torch.float32)
    blocks = torch.from_numpy(np.random.default_rng(0).normal(size=(8, *shape.dims)).astype(np.float32))
    sizes = {}
    for config in EXACT:
        codec = build_codec(config, shape)
        sizes[config.label] = codec.encode(blocks, torch.empty(codec.max_encoded_bytes(8), dtype=torch.uint8))
    assert sizes["zstd 1 shuffled"] < 0.93 * sizes["none"]
    assert sizes["lz4 shuffled"] < sizes["lz4"]


def test_a_setting_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValueError, match=r"granularity=head is read by fp8 and int8 only, but name=zstd"):
        CodecConfig("zstd", granularity="head")
    with pytest.raises(ValueError, match=r"level=3 is read by zstd only, but name=lz4"):
        CodecConfig("lz4", level=3)
    with pytest.raises(ValueError, match=r"shuffle=False is read by zstd and lz4 only, but name=none"):
        CodecConfig(shuffle=False)


def test_a_hand_off_refuses_what_it_cannot_carry() -> None:
    with pytest.raises(ValueError, match=r"codec.name=int8 with staging=off.*transfer.staging=on.*codec=int8"):
        TransferConfig(codec=CodecConfig("int8"))
    with pytest.raises(ValueError, match=r"codec.name=int8 with staging=auto"):
        TransferConfig(codec=CodecConfig("int8"), staging="auto")
    with pytest.raises(ValueError, match=r"codec.name=zstd: its sizes vary.*choose none, fp8 or int8"):
        TransferConfig(codec=CodecConfig("zstd"), staging="on")


@pytest.mark.parametrize("name", ["none", "fp8", "int8"])
def test_one_word_on_the_command_line_chooses_codec_and_staging(name: str) -> None:
    with initialize_config_dir(str(Path(__file__).parents[2] / "conf"), version_base="1.3"):
        composed = compose("compare", overrides=[f"codec={name}"])
    config = load_config(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    assert isinstance(config, Compare)
    assert config.transfer.codec.name == name
    assert config.transfer.staging == ("off" if name == "none" else "on")


def test_every_registered_codec_is_tested_here() -> None:
    assert set(CODECS) == {config.name for config in (*EXACT, *LOSSY)}
