"""Tables for the terminal, JSON for programs, one plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.format import digits
from analysis.results import Table, titled
from analysis.style import SERIES
from benchmarks.engine.overhead import Overhead
from benchmarks.engine.ratios import OVERHEAD_MOST, Row
from xpyd.units import format_s

COLUMNS = ("model", "step", "engine", "products", "of them attention", "of products", "target", "of weights' alone")
RIVAL_COLUMNS = ("transformers", "its cache", "engine is faster by", "")
NOTE = (
    "Products: the matrix products of the step and nothing else, on the same weights: of weights by the fastest of the "
    "engine's way, oneDNN's and torch's, and attention's two over contiguous keys and values. Ratios: medians of "
    "ratios inside a repeat. Transformers: the same weights and threads, SDPA, the faster of its growing and its "
    "preallocated cache."
)


def steps_table(rows: Sequence[Row], labels: Sequence[str]) -> Table:
    cells = [
        (
            row.model,
            row.step,
            format_s(row.engine_s),
            format_s(row.weight_products_s + row.attention_products_s),
            format_s(row.attention_products_s),
            f"{row.of_products:.2f}",
            f"{row.most:.2f}",
            f"{row.of_weight_products:.2f}",
            "-" if row.transformers_s is None else format_s(row.transformers_s),
            row.cache or "-",
            "-" if row.ahead is None else f"{row.ahead:.2f}",
            "met" if row.met else "MISSED",
        )
        for row in rows
    ]
    title = titled("Steps beside their matrix products", labels)
    return Table(title, (*COLUMNS, *RIVAL_COLUMNS), cells, [NOTE], num_left=2)


def overhead_table(found: Sequence[Overhead], labels: Sequence[str]) -> Table:
    cells = [
        (
            each.model,
            each.client,
            f"decode of {each.batch} behind {each.context}",
            format_s(each.step_s),
            format_s(each.beside_s),
            f"{digits(100 * each.share)} %",
            f"{digits(100 * OVERHEAD_MOST)} %",
            "met" if each.share < OVERHEAD_MOST else "MISSED",
            "-" if each.bare_send_s is None else format_s(each.bare_send_s),
            "-" if each.bare_send_s is None else f"{digits(100 * each.bare_send_s / each.step_s)} %",
        )
        for each in found
    ]
    columns = (
        "model",
        "client over",
        "step",
        "whole",
        "beside the model",
        "share",
        "target, below",
        "",
        "bare send",
        "",
    )
    note = (
        "Beside the model: scheduling, segments, packing, commit, rows, and the message with the tokens over MPI. Bare "
        "send: a plain socket's send of as many bytes in MPI's place, in rounds that take turns with these; a worker "
        "that tells its tokens after each step cannot do with less."
    )
    return Table(titled("A worker's own work in a step", labels), columns, cells, [note], num_left=3)


def write_json(rows: Sequence[Row], found: Sequence[Overhead], conditions: Mapping[str, Any], path: Path) -> None:
    steps = [{**asdict(row), "met": row.met} for row in rows]
    overhead = [asdict(each) for each in found]
    path.write_text(json.dumps({"conditions": conditions, "steps": steps, "overhead": overhead}, indent=1) + "\n")


def draw(rows: Sequence[Row], labels: Sequence[str], path: Path) -> None:
    """Times over the bare products', one panel per model: the engine, transformers, and the target."""
    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(11, 3.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, model in enumerate(models):
        axes = figure.add_subplot(len(models), 1, index + 1)
        mine = [row for row in rows if row.model == model]
        for x, row in enumerate(mine):
            axes.bar(x - 0.2, row.of_products, 0.38, color=SERIES[0])
            if row.ahead is not None:
                axes.bar(x + 0.2, row.of_products * row.ahead, 0.38, color="#9aa0a8")
            axes.hlines(row.most, x - 0.45, x + 0.45, color=SERIES[5], linewidth=1.2)
        axes.axhline(1, color="#3f444c", linewidth=1)
        axes.set_xticks(range(len(mine)), [row.step.replace(" in ", "\nin ") for row in mine], fontsize=7, rotation=20)
        axes.set_ylabel("time / bare products")
        axes.set_title(titled(model, labels), fontsize=9, loc="left")
    bars = [figure.axes[0].bar(0, 0, color=c, label=n) for n, c in (("engine", SERIES[0]), ("transformers", "#9aa0a8"))]
    line = figure.axes[0].plot([], [], color=SERIES[5], label="target")
    figure.legend(handles=[*bars, *line], loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=140, facecolor="white")
