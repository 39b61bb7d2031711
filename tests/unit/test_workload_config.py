"""The workload as a whole: pairs, streams, mixes, traces, summary, and every YAML of conf/workload and conf/slo."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from xpyd.request import Request
from xpyd.workload.arrivals import ArrivalConfig
from xpyd.workload.config import ClassConfig, Stream, WorkloadConfig, spawn_generator
from xpyd.workload.lengths import LengthConfig
from xpyd.workload.slo import SloConfig
from xpyd.workload.summary import ClassSummary
from xpyd.workload.traces import TraceConfig

CONF = Path(__file__).parents[2] / "conf"
CHAT = ClassConfig("chat", 0.8, LengthConfig("uniform", low=32, high=128), LengthConfig("uniform", low=24, high=48))
DOCUMENTS = ClassConfig("documents", 0.2, LengthConfig("fixed", 600), LengthConfig("uniform", low=16, high=32))
MIX = WorkloadConfig(200, arrival=ArrivalConfig("poisson", 8.0), classes=(CHAT, DOCUMENTS))


def offsets(requests: list[Request]) -> list[int]:
    return [r.arrival_offset_ns for r in requests]


def shapes(requests: list[Request]) -> list[tuple[str, int, int]]:
    return [(r.class_name, r.input_len, r.output_len) for r in requests]


@pytest.fixture
def azure(tmp_path: Path) -> TraceConfig:
    """Eight rows, one second apart, with input lengths 10, 20, ... and output lengths 1, 2, ..."""
    rows = [f"2024-05-10 00:00:{i:02d}.000000,{10 * (i + 1)},{i + 1}" for i in range(8)]
    path = tmp_path / "azure.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return TraceConfig("azure", str(path))


def test_a_pair_is_the_same_in_both_arms_and_no_other_pair() -> None:
    assert MIX.build(3) == replace(MIX).build(3)
    first, second = MIX.build(0), MIX.build(1)
    assert offsets(first) != offsets(second)
    assert shapes(first) != shapes(second)
    assert not {r.seed for r in first} & {r.seed for r in second}
    assert shapes(replace(MIX, seed=1).build(0)) != shapes(first)


def test_requests_of_a_block() -> None:
    requests = MIX.build(0)
    assert [r.request_id for r in requests] == list(range(200))
    assert offsets(requests) == sorted(offsets(requests))
    assert len({r.seed for r in requests}) == 200
    for r in requests:
        assert all(type(value) is int for value in (r.arrival_offset_ns, r.input_len, r.output_len, r.seed))
        assert r.input_len == 600 if r.class_name == "documents" else 32 <= r.input_len <= 128


def test_each_stream_is_its_own() -> None:
    base = MIX.build(0)
    faster = replace(MIX, arrival=ArrivalConfig("gamma", 80.0, cv=2.0)).build(0)
    assert shapes(faster) == shapes(base)
    assert [r.seed for r in faster] == [r.seed for r in base]
    longer = replace(MIX, classes=(CHAT, replace(DOCUMENTS, input_len=LengthConfig("uniform", low=1, high=9)))).build(0)
    assert offsets(longer) == offsets(base)
    assert [(r.class_name, r.output_len) for r in longer] == [(r.class_name, r.output_len) for r in base]
    assert [s for s in shapes(longer) if s[0] == "chat"] == [s for s in shapes(base) if s[0] == "chat"]


def test_no_two_streams_are_alike() -> None:
    keys = [(seed, pair, stream) for seed in range(3) for pair in range(3) for stream in Stream]
    assert len({int(spawn_generator(*key).integers(2**63)) for key in keys}) == len(keys)


def test_random_quantities_are_independent() -> None:
    same = LengthConfig("uniform", low=1, high=1000)
    mix = ClassConfig("one", 0.5, same, same), ClassConfig("two", 0.5, same, same)
    requests = replace(MIX, num_requests=2000, classes=mix).build(0)
    columns = [
        np.diff([0, *offsets(requests)]),
        [r.class_name == "one" for r in requests],
        [r.input_len for r in requests],
        [r.output_len for r in requests],
        [r.seed for r in requests],
    ]
    assert np.abs(np.corrcoef(columns) - np.eye(5)).max() < 0.1


def test_shares_are_kept_on_average() -> None:
    drawn = [r.class_name for pair in range(20) for r in MIX.build(pair)]
    assert drawn.count("documents") / len(drawn) == pytest.approx(0.2, abs=5 * (0.2 * 0.8 / len(drawn)) ** 0.5)


def test_closed_loop_is_told_by_its_concurrency() -> None:
    closed = replace(MIX, arrival=ArrivalConfig("closed_loop", concurrency=4))
    assert (MIX.concurrency, closed.concurrency) == (None, 4)
    assert set(offsets(closed.build(0))) == {0}
    assert closed.summary().rate_rps is None


def test_one_length_given_fixes_it_in_every_class() -> None:
    requests = replace(MIX, input_len=512).build(0)
    assert {r.input_len for r in requests} == {512}
    assert [(r.class_name, r.output_len) for r in requests] == [(r.class_name, r.output_len) for r in MIX.build(0)]
    assert replace(MIX, output_len=7).max_tokens() == 607


def test_both_lengths_given_make_one_class() -> None:
    both = replace(MIX, input_len=512, output_len=20)
    assert set(shapes(both.build(0))) == {("fixed", 512, 20)}
    assert offsets(both.build(0)) == offsets(MIX.build(0))
    assert both.max_tokens() == 532
    assert both.summary().classes == (ClassSummary("fixed", 1.0, 512, 20),)


def test_max_tokens_bounds_every_block() -> None:
    assert MIX.max_tokens() == 632
    assert max(r.input_len + r.output_len for pair in range(9) for r in MIX.build(pair)) <= 632


def test_summary_of_a_mix() -> None:
    summary = MIX.summary()
    assert summary.classes == (ClassSummary("chat", 0.8, 80, 36), ClassSummary("documents", 0.2, 600, 24))
    assert summary.rate_rps == 8.0


def test_each_pair_plays_its_own_rows_of_a_trace(azure: TraceConfig) -> None:
    workload = WorkloadConfig(3, trace=azure)
    assert shapes(workload.build(0)) == [("azure", 10, 1), ("azure", 20, 2), ("azure", 30, 3)]
    assert shapes(workload.build(1)) == [("azure", 40, 4), ("azure", 50, 5), ("azure", 60, 6)]
    assert offsets(workload.build(1)) == [0, 1_000_000_000, 2_000_000_000]
    assert workload.max_tokens() == 88


def test_a_trace_that_is_too_short_is_refused(azure: TraceConfig) -> None:
    workload = WorkloadConfig(3, trace=azure)
    workload.check(2)
    for refused in (lambda: workload.check(3), lambda: workload.build(2)):
        with pytest.raises(ValueError, match=r"num_requests=3: 3 pairs take 9 rows, .*azure.csv has 8 left"):
            refused()


def test_a_trace_may_take_its_times_from_a_process(azure: TraceConfig) -> None:
    workload = WorkloadConfig(3, arrival=ArrivalConfig("fixed", 10.0), trace=azure)
    assert offsets(workload.build(1)) == [100_000_000, 200_000_000, 300_000_000]
    assert shapes(workload.build(1)) == shapes(WorkloadConfig(3, trace=azure).build(1))
    assert workload.summary().rate_rps == 10.0


def test_summary_of_a_trace_counts_what_is_left_out(azure: TraceConfig) -> None:
    summary = WorkloadConfig(2, trace=replace(azure, max_input_len=40, rate_scale=2.0)).summary()
    assert summary.classes == (ClassSummary("azure", 1.0, 25.0, 2.5),)
    assert summary.rate_rps == 2.0
    assert (summary.num_rows_empty, summary.num_rows_too_long) == (0, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arrival": None}, "arrival is null and there is no trace"),
        ({"classes": ()}, r"classes=\[\]: give at least one class"),
        ({"classes": (CHAT, replace(CHAT, share=0.2))}, r"classes=\['chat', 'chat'\]: .*a name of its own"),
        ({"classes": (CHAT,)}, r"shares of classes \(chat 0\.8\) sum to 0\.8; make them sum to 1"),
        ({"trace": TraceConfig("azure", "t.csv")}, "classes is set beside trace.path=t.csv"),
        ({"classes": (), "trace": TraceConfig("azure", "t.csv"), "input_len": 9}, "input_len is set beside"),
        ({"classes": (), "trace": TraceConfig("azure", "t.csv", rate_scale=2.0)}, r"trace.rate_scale=2\.0: .*to null"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MIX, **changes)


@dataclass(frozen=True)
class Groups:
    """The two groups of this package, validated as ``xpyd.config`` validates all of them."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    workload: WorkloadConfig
    slo: SloConfig


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """conf/workload and conf/slo under a primary config that needs no other group."""
    root = tmp_path_factory.mktemp("conf")
    for group in ("workload", "slo"):
        (root / group).symlink_to(CONF / group)
    (root / "main.yaml").write_text("defaults:\n  - workload: chat_docs\n  - slo: chat\n  - _self_\n")
    return root


def load(conf: Path, *overrides: str) -> Groups:
    with initialize_config_dir(str(conf), version_base="1.3"):
        composed = compose("main", overrides=list(overrides))
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    return TypeAdapter(Groups).validate_python(plain)


def options(group: str) -> list[str]:
    return [path.stem for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(
    "name", [name for name in options("workload") if name not in ("mooncake", "azure", "burstgpt")]
)
def test_every_mix_builds_requests_within_its_bound(conf: Path, name: str) -> None:
    workload = load(conf, f"workload={name}").workload
    requests = workload.build(0)
    assert len(requests) == workload.num_requests
    assert max(r.input_len + r.output_len for r in requests) <= workload.max_tokens()
    assert workload.summary().classes
    assert TypeAdapter(WorkloadConfig).validate_python(TypeAdapter(WorkloadConfig).dump_python(workload)) == workload


@pytest.mark.parametrize("name", ["mooncake", "azure", "burstgpt"])
def test_every_trace_yaml_builds_once_it_has_a_path(conf: Path, name: str) -> None:
    trace = load(conf, f"workload={name}", "workload.trace.path=some.file").workload.trace
    assert trace == TraceConfig(name, "some.file", skip_empty=name == "burstgpt")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", options("slo"))
def test_every_slo_builds(conf: Path, name: str) -> None:
    slo = load(conf, f"slo={name}").slo
    assert 0 < slo.itl_s < slo.ttft_s


def test_overrides_reach_every_part(conf: Path) -> None:
    overrides = ("workload.arrival.rate_rps=4", "workload.num_requests=50", "workload.input_len=512")
    workload = load(conf, *overrides, "workload.classes.1.share=0.5", "workload.classes.0.share=0.5").workload
    assert workload.summary().rate_rps == 4
    assert {r.input_len for r in workload.build(0)} == {512}
    assert [cls.share for cls in workload.classes] == [0.5, 0.5]
    gamma = load(conf, "workload.arrival.kind=gamma", "workload.arrival.cv=3").workload
    assert gamma.arrival == ArrivalConfig("gamma", 8.0, cv=3.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+workload.rate=4", r"workload\.rate"),
        ("+workload.arrival.rate=4", r"workload\.arrival\.rate"),
        ("workload.arrival.rate_rps=0", r"workload\.arrival\.rate_rps\n.*greater than 0"),
        ("workload.arrival.rate_rps=inf", r"workload\.arrival\.rate_rps\n.*less than inf"),
        ("workload.arrival.kind=uniform", r"workload\.arrival\.kind\n.*'poisson'"),
        ("workload.arrival.kind=gamma", r"workload\.arrival\n.*cv is not set; kind=gamma needs rate_rps, cv"),
        ("workload.num_requests=0", r"workload\.num_requests\n.*greater than 0"),
        ("workload.classes.0.share=0.5", r"workload\n.*chat 0\.5, documents 0\.35\) sum to 0\.85"),
        ("workload.classes.0.input_len.low=900", r"classes\.0\.input_len\n.*low=900 is above high=128"),
        ("slo.ttft_s=0", r"slo\.ttft_s\n.*greater than 0"),
    ],
)
def test_wrong_overrides_are_refused_with_their_key(conf: Path, override: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        load(conf, override)
