"""How long the analysis of a large comparison takes, and how much memory: a run folder of made-up rows, read whole.

python -m benchmarks.analysis --tokens 10000000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from xpyd.records import COLOCATED, DISAGGREGATED
from xpyd.streams import arrow_schema, write_parquet

OUTPUT_LEN = 250
NUM_PAIRS = 5


def write_run(folder: Path, num_tokens: int) -> None:
    """A comparison of ``num_tokens`` tokens in ten blocks, rows in the order in which a client would see them."""
    num_requests = num_tokens // (2 * NUM_PAIRS * OUTPUT_LEN)
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("blocks", "requests", "stages", "tokens")}
    for block in range(2 * NUM_PAIRS):
        arm = (COLOCATED, DISAGGREGATED)[block % 2]
        for name, rows in _block(block, block // 2, arm, num_requests).items():
            tables[name].append(rows)
    for name, parts in tables.items():
        schema = arrow_schema(name)
        whole = pa.concat_tables([_table(part, schema) for part in parts])
        write_parquet(whole, folder / f"{name}.parquet")
    config = {
        "experiment": "compare",
        "model": {"name": "made-up"},
        "placement": {"num_prefill": 1, "num_decode": 1, "num_colocated": 0},
        "transport": {"name": "none"},
        "fabric": {"name": "none"},
        "slo": {"ttft_s": 0.5, "itl_s": 0.05},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "DONE").write_text("{}")


def _block(block: int, pair: int, arm: str, num_requests: int) -> dict[str, dict[str, Any]]:
    generator = np.random.default_rng(block)
    request = np.arange(num_requests)
    begin = 10**12 * (block + 1)
    arrived = begin + np.sort(generator.integers(0, 10**11, num_requests))
    prefill_begin = arrived + generator.integers(10**6, 10**7, num_requests)
    prefill_end = prefill_begin + generator.integers(10**7, 10**8, num_requests)
    admitted = prefill_end + 10**6
    gaps = generator.integers(5 * 10**6, 2 * 10**7, (num_requests, OUTPUT_LEN))
    tokens_ns = admitted[:, None] + gaps.cumsum(1)
    stamps = {
        "arrived": arrived,
        "routed": arrived + 1000,
        "prefill_begin": prefill_begin,
        "prefill_end": prefill_end,
        "decode_admit": admitted,
        "finished": tokens_ns[:, -1],
    }
    seen = np.argsort(tokens_ns.ravel(), kind="stable")
    lengths = np.random.default_rng(pair).integers(20, 9000, num_requests)
    return {
        "blocks": {
            "block": [block],
            "pair": pair,
            "arm": arm,
            "begin_ns": begin,
            "end_ns": begin + 10**11,
            "num_requests": num_requests,
            "clock_error_ns": 1,
            "ledger_bytes": 0,
            "transport_bytes": 0,
            "interface_bytes": -1,
        },
        "requests": {
            "block": block,
            "pair": pair,
            "arm": arm,
            "request_id": request,
            "class_name": "default",
            "input_len": lengths,
            "output_len": OUTPUT_LEN,
            "arrival_offset_ns": arrived - begin,
        },
        "stages": {
            "block": block,
            "request_id": np.tile(request, len(stamps)),
            "stage": np.repeat(list(stamps), num_requests),
            "rank": 1,
            "t_ns": np.concatenate(list(stamps.values())),
            "reason": "",
        },
        "tokens": {
            "block": block,
            "request_id": np.repeat(request, OUTPUT_LEN)[seen],
            "index": np.tile(np.arange(OUTPUT_LEN), num_requests)[seen],
            "token_id": (seen * 7 % 32000).astype(np.int64),
            "t_ns": tokens_ns.ravel()[seen],
            "emitted_ns": tokens_ns.ravel()[seen] - 10**5,
            "rank": 1,
            "margin": 1.0,
        },
    }


def _table(columns: dict[str, Any], schema: pa.Schema) -> pa.Table:
    length = max(len(values) for values in columns.values() if not isinstance(values, str | int | float))
    whole = {
        name: np.full(length, values) if isinstance(values, str | int | float) else values
        for name, values in columns.items()
    }
    return pa.table([pa.array(whole[field.name], field.type) for field in schema], schema)


def measure(folder: Path) -> dict[str, float]:
    """Wall and CPU seconds of this process from the folder to every table as text, and its largest size in memory."""
    from analysis import compare
    from analysis.load import load_run
    from analysis.render import render

    begin, begin_cpu = time.perf_counter(), time.process_time()
    run = load_run(folder)
    loaded = time.perf_counter()
    render([compare.analyse(run)], "markdown")
    end = time.perf_counter()
    return {
        "load": loaded - begin,
        "all tables": end - loaded,
        "both": end - begin,
        "both, CPU": time.process_time() - begin_cpu,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis", description=__doc__)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="token rows of the comparison")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes; medians are printed")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # the child: one measurement, as JSON
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(f"writing a comparison of {options.tokens:,} token rows", file=sys.stderr)
        write_run(Path(folder), options.tokens)
        runs = []
        for repeat in range(options.repeats):
            print(f"repeat {repeat + 1} of {options.repeats}", file=sys.stderr)
            child = [sys.executable, "-m", "benchmarks.analysis", "--measure", folder]
            done = subprocess.run(child, capture_output=True, text=True, check=True, env=dict(os.environ))
            runs.append(json.loads(done.stdout))
    print(f"{options.tokens:,} token rows, medians of {options.repeats} processes")
    for step in runs[0]:
        print(f"  {step:<18} {median(run[step] for run in runs):6.2f}{'' if step.startswith('peak') else ' s'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
