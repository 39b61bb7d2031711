"""The way of every request of a pair as a Gantt chart: one bar each, cut into the stages that add up to its time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.requests import STAGE_TIMES
from analysis.style import COST, GAIN, MUTED, SERIES
from xpyd.units import NS_PER_S

COLOURS = dict(zip(STAGE_TIMES, (MUTED, SERIES[1], COST, SERIES[3], GAIN), strict=True))
MAX_BARS = 60  # a panel of more says nothing: evenly chosen by arrival
BAR_IN, PANEL_IN = 0.09, 1.1  # height per bar and around them


def draw_timeline(figure: Figure, requests: pd.DataFrame, blocks: Mapping[str, int]) -> None:
    """A panel per arm of ``blocks`` (arm -> block number); ``requests`` as ``request_frame`` makes them."""
    panels = figure.subplots(len(blocks), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (arm, block) in zip(panels, blocks.items(), strict=True):
        _bars(axes, chosen(requests, block))
        axes.set_title(arm)
    panels[0].legend(loc="lower right", ncols=len(COLOURS), fontsize=7, bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel("seconds into the block")


def height_in(requests: pd.DataFrame, blocks: Mapping[str, int]) -> float:
    """How high the chart wants to be."""
    return sum(PANEL_IN + BAR_IN * len(chosen(requests, block)) for block in blocks.values())


def chosen(requests: pd.DataFrame, block: int) -> pd.DataFrame:
    """The requests of a block that ended, by arrival; every n-th where there are more than MAX_BARS."""
    own = requests[(requests["block"] == block) & (requests["status"] == "finished")].sort_values("arrived_ns")
    return own.iloc[:: max(1, -(-len(own) // MAX_BARS))]


def _bars(axes: Axes, requests: pd.DataFrame) -> None:
    rows = np.arange(len(requests))
    begin = requests["arrived_ns"].to_numpy() / NS_PER_S
    for stage in STAGE_TIMES:
        length = requests[stage].fillna(0).to_numpy()
        axes.barh(rows, length, left=begin, height=0.8, color=COLOURS[stage], label=_words(stage))
        begin = begin + length
    axes.set(ylabel="requests", yticks=[])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")


def _words(stage: str) -> str:
    return stage.removesuffix("_s").replace("_", " ")
