"""What codecs cost and save, read from a run of the ``codecs`` experiment for a plan to weigh."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.parquet as pq

from xpyd.economics.codecs import CodecTerm
from xpyd.kv.codec.config import CodecConfig
from xpyd.streams import in_this_version
from xpyd.units import GIGA

NONE = CodecConfig().label


def read_codec_terms(run_folder: Path) -> tuple[CodecTerm, ...]:
    """Every codec that a whole run timed but the null control: bytes over all prompts, medians over repeats.

    Seconds are those of the machine that timed them. Raises ValueError where there is no such run.
    """
    path = run_folder / "codec_points.parquet"
    try:
        rows = in_this_version(pq.read_table(path), "codec_points", path).to_pylist()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"plan.codec_run={run_folder}: no whole run of codecs ({error}); give the folder of one, made with "
            "python -m experiments.codecs"
        ) from None
    by_codec: defaultdict[str, defaultdict[int, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        by_codec[row["codec"]][row["prompt"]].append(row)
    return tuple(_term(codec, list(prompts.values())) for codec, prompts in by_codec.items() if codec != NONE)


def _term(codec: str, prompts: list[list[dict[str, Any]]]) -> CodecTerm:
    totals = {
        name: sum(median(row[name] for row in repeats) for repeats in prompts)
        for name in ("raw_bytes", "encoded_bytes", "encode_s", "decode_s")
    }
    gbytes = totals["raw_bytes"] / GIGA
    return CodecTerm(
        codec, totals["encoded_bytes"] / totals["raw_bytes"], totals["encode_s"] / gbytes, totals["decode_s"] / gbytes
    )
