"""Trace readers: each published format, every kind of bad row by its place and remedy, and what options leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xpyd.workload.trace_formats import FORMATS, TraceError
from xpyd.workload.traces import Trace, TraceConfig

MOONCAKE = """\
{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 3000, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}

{"timestamp": 3000.5, "input_length": 12, "output_length": 1, "hash_ids": []}
"""
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:46.680590,879,55
"""
BURSTGPT = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45.5,ChatGPT,1087,230,1317,API log
118,GPT-4,417,276,693,Conversation log
"""
SAMPLES = {"mooncake": MOONCAKE, "azure": AZURE, "burstgpt": BURSTGPT}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_trace(content: str | bytes) -> str:
        path = tmp_path / "trace"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_trace


def lengths(trace: Trace) -> list[tuple[int, int]]:
    return [(row.input_len, row.output_len) for row in trace.rows]


def test_every_format_has_a_sample() -> None:
    assert set(SAMPLES) == set(FORMATS)


def test_mooncake(write: Any) -> None:
    config = TraceConfig("mooncake", write(MOONCAKE))
    trace = config.load()
    assert lengths(trace) == [(6755, 500), (7319, 490), (12, 1)]
    assert config.offsets_ns(trace.rows) == [0, 3_000_000_000, 3_000_500_000]
    assert [row.line for row in trace.rows] == [1, 2, 4]
    assert config.rate_rps(trace.rows) == pytest.approx(2 / 3.0005)


def test_azure(write: Any) -> None:
    config = TraceConfig("azure", write(AZURE))
    trace = config.load()
    assert lengths(trace) == [(374, 44), (396, 109), (879, 55)]
    assert config.offsets_ns(trace.rows) == [0, 4_314_579_000, 60_000_000_000]


def test_azure_of_2024_has_a_time_zone(write: Any) -> None:
    content = AZURE.replace("2023-11-16 18:15:46.6805900", "2023-11-16 20:15:46.680590+02:00")
    config = TraceConfig("azure", write(content))
    assert config.offsets_ns(config.load().rows)[1] == 4_314_579_000


def test_burstgpt(write: Any) -> None:
    config = TraceConfig("burstgpt", write(BURSTGPT))
    trace = config.load()
    assert lengths(trace) == [(472, 18), (1087, 230), (417, 276)]
    assert config.offsets_ns(trace.rows) == [0, 40_500_000_000, 113_000_000_000]
    assert [row.class_name for row in trace.rows] == ["Conversation log", "API log", "Conversation log"]


def test_a_byte_order_mark_is_no_part_of_the_first_column(write: Any) -> None:
    assert TraceConfig("azure", write(b"\xef\xbb\xbf" + AZURE.encode())).load().num_read == 3


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("mooncake", "7319", "-7319", "line 2, column input_length=-7319: .*negative; correct or remove the row"),
        ("mooncake", "490", '"many"', "line 2, column output_length='many': not a whole number"),
        ("mooncake", "490", "49.5", r"line 2, column output_length=49\.5: not a whole number"),
        ("mooncake", "490", "true", "line 2, column output_length=True: not a whole number"),
        ("mooncake", "490", "null", "line 2, column output_length=None: not a whole number"),
        ("mooncake", "3000,", "NaN,", "line 2, column timestamp=nan: not a finite number"),
        ("mooncake", "3000,", "[1],", r"line 2, column timestamp=\[1\]: not a finite number"),
        ("mooncake", "3000,", "true,", "line 2, column timestamp=True: not a finite number"),
        ("mooncake", '490, "hash_ids": [0, 14]}', "49", r"line 2: .*is not a JSON object; complete or remove"),
        ("mooncake", MOONCAKE, "[1, 2]", r"line 1: '\[1, 2\]' is not a JSON object"),
        ("mooncake", '"input_length": 7319, ', "", "line 2: no column input_length among timestamp, output_length"),
        ("mooncake", "3000.5", "2999.5", "line 4: 0.0005 s before line 2; set workload.trace.sort=true"),
        ("mooncake", "490", "0", "line 2: 7319 input and 0 output tokens; set workload.trace.skip_empty=true"),
        ("azure", "396", "-396", "line 3, column ContextTokens='-396': .*negative"),
        ("azure", "396", "x96", "line 3, column ContextTokens='x96': not a whole number"),
        ("azure", "396", "", "line 3, column ContextTokens='': not a whole number"),
        ("azure", "2023-11-16 18:15:50", "yesterday", "line 3, column TIMESTAMP='yesterday.*': not a date and time"),
        ("azure", ",396,109", ",396", "line 3: 2 fields .* under a header of 3 columns; complete or remove the row"),
        ("azure", ",396,109", ",396,109,7", "line 3: 4 fields"),
        ("azure", "ContextTokens", "Tokens", "line 1: no column ContextTokens among TIMESTAMP, Tokens, .*format"),
        ("burstgpt", "45.5", "inf", "line 3, column Timestamp='inf': not a finite number"),
        ("burstgpt", "45.5", "soon", "line 3, column Timestamp='soon': not a finite number"),
        ("burstgpt", "45.5", "4.5", "line 3: 0.5 s before line 2"),
        ("burstgpt", BURSTGPT, AZURE, "line 1: no column Timestamp, Request tokens, Response tokens, Log Type among"),
    ],
)
def test_a_bad_row_is_named(write: Any, name: Any, old: str, new: str, message: str) -> None:
    content = SAMPLES[name]
    assert old in content
    path = write(content.replace(old, new, 1))
    with pytest.raises(TraceError, match=f"^{path}, {message}"):
        TraceConfig(name, path).load()


@pytest.mark.parametrize("name", FORMATS)
def test_an_empty_file_is_refused(write: Any, name: Any) -> None:
    for content in ("", "\n\n", AZURE.splitlines()[0] if name == "azure" else ""):
        with pytest.raises(TraceError, match="trace: no rows; is the file whole"):
            TraceConfig(name, write(content)).load()


def test_a_file_that_cannot_be_read_is_named(write: Any, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"absent\.csv: No such file or directory; set workload\.trace\.path"):
        TraceConfig("azure", str(tmp_path / "absent.csv")).load()
    with pytest.raises(TraceError, match=r"after line 0: not plain text .*; unpack or repair the file"):
        TraceConfig("azure", write(b"\x1f\x8b\x08\x00\xff\xfe")).load()


def test_what_options_leave_out_is_counted(write: Any) -> None:
    rows = [(10, 5), (0, 5), (10, 0), (900, 5), (10, 90), (20, 6)]
    lines = [f"{i},m,{inp},{out},{inp + out},API log" for i, (inp, out) in enumerate(rows)]
    path = write("\n".join([BURSTGPT.splitlines()[0], *lines]))
    trace = TraceConfig("burstgpt", path, max_input_len=100, max_output_len=50, skip_empty=True).load()
    assert lengths(trace) == [(10, 5), (20, 6)]
    assert (trace.num_read, trace.num_empty, trace.num_too_long) == (6, 2, 2)


def test_a_trace_of_which_nothing_is_left_is_refused(write: Any) -> None:
    with pytest.raises(TraceError, match=r"none of 3 rows is left \(0 empty, 3 too long, start=0\)"):
        TraceConfig("azure", write(AZURE), max_input_len=5).load()
    with pytest.raises(TraceError, match="start=3"):
        TraceConfig("azure", write(AZURE), start=3).load()


def test_start_and_limit_count_rows_that_are_left_in(write: Any) -> None:
    assert lengths(TraceConfig("azure", write(AZURE), start=1).load()) == [(396, 109), (879, 55)]
    assert lengths(TraceConfig("azure", write(AZURE), max_input_len=380, limit=1).load()) == [(374, 44)]
    assert lengths(TraceConfig("mooncake", write(MOONCAKE), start=1, limit=1, max_input_len=7000).load()) == [(12, 1)]


def test_rows_past_the_limit_are_not_read(write: Any) -> None:
    path = write(AZURE.replace("879", "junk"))
    assert TraceConfig("azure", path, limit=2).load().num_read == 2
    with pytest.raises(TraceError, match="junk"):
        TraceConfig("azure", path, limit=3).load()


def test_sort_orders_by_time_before_start_and_limit(write: Any) -> None:
    path = write(BURSTGPT.replace("118", "1"))
    assert lengths(TraceConfig("burstgpt", path, sort=True, limit=2).load()) == [(417, 276), (472, 18)]


def test_rate_scale_is_the_only_change_of_pace(write: Any) -> None:
    config = TraceConfig("burstgpt", write(BURSTGPT), rate_scale=2.0)
    rows = config.load().rows
    assert config.offsets_ns(rows) == [0, 20_250_000_000, 56_500_000_000]
    assert config.rate_rps(rows) == pytest.approx(2 / 56.5)
    assert config.rate_rps(rows[:1]) == float("inf")
