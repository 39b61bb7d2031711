"""The bill alone: alpha, gamma and bandwidth of a ``transfer`` run, and how well they hold on sizes left out.

python -m analysis.transfer runs/transfer/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, number, sentence
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import MARKERS, SERIES
from analysis.tables import config_columns
from xpyd.economics.cost import LinkFit, LinkModel, LinkPoint, fit_link, score_link
from xpyd.economics.nnls import Score
from xpyd.units import GIGA, bytes_per_s_to_gbps, format_bytes

POINT = ["pieces_in_flight", "num_layers", "num_pieces", "payload_bytes", "held_out"]


@dataclass(frozen=True)
class PiecesFit:
    """The link fitted at one number of pieces in flight, scored apart on the sizes that the fit did not see."""

    pieces_in_flight: int
    fit: LinkFit
    held_out: Score | None


def analyse(run: Run) -> Results:
    """Raises RunError without samples, or where times do not grow with size."""
    samples = run.tables["transfer_points"]
    if samples.empty:
        raise RunError(f"{run.paths[0]}: no transfer was timed; let the run go on, or measure again")
    points = median_points(samples)
    fits = fit_links(run, points)
    best = fastest(fits)
    model = best.fit.model
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"{model.bytes_per_s / GIGA:.3g} GB/s with {pieces(best.pieces_in_flight)} in flight.",
        because=sentence(
            f"each transfer costs {number(model.alpha_s, 's')}, each piece {number(model.gamma_s, 's')} more; "
            + _held_out_words(best.held_out)
        ),
        tables=[fit_table(run, fits), size_table(run, points, best)],
        frame=points.assign(**config_columns(run), modeled_s=_modeled(points, fits)),
        plots=[
            Plot(
                "Bandwidth by size",
                "Points: medians over repeats; hollow: sizes left out of the fit. Lines: modeled. Payload over time, "
                "in decimal gigabytes per second.",
                lambda figure: draw_bandwidth(figure, points, fits),
            )
        ],
    )


def median_points(samples: pd.DataFrame) -> pd.DataFrame:
    """Every size, layer count and number of pieces in flight, as the median over repeats."""
    points: pd.DataFrame = samples.groupby(POINT)["seconds"].median().reset_index()
    return points


def fit_links(run: Run, points: pd.DataFrame) -> list[PiecesFit]:
    """The link at each number of pieces in flight. Raises RunError where times do not grow with size."""
    windows = sorted(points["pieces_in_flight"].unique())
    try:
        return [fit_pieces(points[points["pieces_in_flight"] == n]) for n in windows]
    except ValueError as error:
        raise RunError(f"{run.paths[0]}: {error}") from None


def fastest(fits: Sequence[PiecesFit]) -> PiecesFit:
    return max(fits, key=lambda found: found.fit.model.bytes_per_s)


def fit_pieces(points: pd.DataFrame) -> PiecesFit:
    """Fit the points that are not held out, score the others. Raises ValueError, see ``fit_link``."""
    pieces_in_flight = int(points["pieces_in_flight"].iloc[0])
    fit = fit_link(_link_points(points[~points["held_out"]]))
    left_out = _link_points(points[points["held_out"]])
    return PiecesFit(pieces_in_flight, fit, score_link(fit.model, left_out) if left_out else None)


def fit_table(run: Run, fits: Sequence[PiecesFit]) -> Table:
    rows = []
    for found in fits:
        model, score = found.fit.model, found.fit.score
        rate = f"{model.bytes_per_s / GIGA:.3g} GB/s", f"{bytes_per_s_to_gbps(model.bytes_per_s):.3g} Gb/s"
        costs = number(model.alpha_s, "s"), number(model.gamma_s, "s")
        errors = number(score.rms_error, "share"), _rms(found.held_out), str(score.num_points)
        rows.append((str(found.pieces_in_flight), *costs, *rate, f"{score.r2:.3f}", *errors))
    fabric = run.config["fabric"]
    configured = f"{fabric['rate_gbps']:g} Gb/s" if fabric.get("rate_gbps") else "no rate"
    notes = [
        "seconds = alpha + gamma * pieces + bytes / bandwidth, fitted to medians over repeats by relative error.",
        f"Fabric {fabric['name']}, {configured} configured; transport {run.config['transport']['name']}.",
    ]
    columns = (
        "pieces in flight",
        "alpha",
        "gamma",
        "bandwidth",
        "as link rate",
        "R2",
        "error",
        "left out",
        "points",
    )
    return Table(titled("Link, fitted to measured transfers", run.labels), columns, rows, notes)


def size_table(run: Run, points: pd.DataFrame, best: PiecesFit) -> Table:
    """Every size at the best number of pieces in flight, measured and modeled."""
    rows = []
    chosen = points[points["pieces_in_flight"] == best.pieces_in_flight].sort_values(["payload_bytes", "num_layers"])
    for point, held_out in zip(_link_points(chosen), chosen["held_out"], strict=True):
        modeled = _seconds(best.fit.model, point)
        measured = number(point.seconds, "s"), f"{point.num_bytes / point.seconds / GIGA:.3g} GB/s"
        error = f"{(modeled / point.seconds - 1) * 100:+.0f} %"
        use = "scored" if held_out else "fitted"
        rows.append(
            (format_bytes(point.num_bytes), use, str(point.num_descriptors), *measured, number(modeled, "s"), error)
        )
    columns = ("payload", "used for", "pieces", "measured", "measured rate", "modeled", "model error")
    return Table(titled(f"Transfers, {pieces(best.pieces_in_flight)} in flight", run.labels), columns, rows, num_left=2)


def pieces(count: int) -> str:
    return f"{count} piece{'' if count == 1 else 's'}"


def draw_bandwidth(figure: Figure, points: pd.DataFrame, fits: Sequence[PiecesFit]) -> None:
    axes = figure.add_subplot()
    for found, colour, mark in zip(fits, _repeat(SERIES), _repeat(MARKERS), strict=False):
        chosen = points[points["pieces_in_flight"] == found.pieces_in_flight]
        for held_out, face in ((False, colour), (True, "none")):
            part = chosen[chosen["held_out"] == held_out]
            rate = part["payload_bytes"] / part["seconds"] / GIGA
            axes.plot(part["payload_bytes"], rate, mark, color=colour, markerfacecolor=face, markersize=5, alpha=0.8)
        fewest = chosen[chosen["num_layers"] == chosen["num_layers"].min()].sort_values("payload_bytes")
        modeled = np.array([_seconds(found.fit.model, point) for point in _link_points(fewest)])
        label = f"{found.pieces_in_flight} in flight"
        line = fewest["payload_bytes"] / modeled / GIGA
        axes.plot(fewest["payload_bytes"], line, color=colour)
        axes.plot([], [], color=colour, marker=mark, markersize=5, label=label)
    axes.set_xscale("log", base=2)
    sizes = sorted(points["payload_bytes"].unique())
    axes.set_xticks(sizes, [format_bytes(size) for size in sizes], fontsize=8)
    axes.set(ylabel="GB/s", xlabel="payload", ylim=(0, None))
    axes.legend(title="pieces")


def _link_points(points: pd.DataFrame) -> list[LinkPoint]:
    columns = (points["payload_bytes"], points["num_pieces"], points["seconds"])
    return [LinkPoint(int(size), int(pieces), float(s)) for size, pieces, s in zip(*columns, strict=True)]


def _modeled(points: pd.DataFrame, fits: Iterable[PiecesFit]) -> list[float]:
    models = {found.pieces_in_flight: found.fit.model for found in fits}
    chosen = zip(points["pieces_in_flight"], _link_points(points), strict=True)
    return [_seconds(models[int(pieces)], point) for pieces, point in chosen]


def _seconds(model: LinkModel, point: LinkPoint) -> float:
    return model.transfer_s(point.num_bytes, point.num_descriptors)


def _rms(score: Score | None) -> str:
    return NONE if score is None else number(score.rms_error, "share")


def _held_out_words(score: Score | None) -> str:
    return "no size was left out to score the model on" if score is None else f"off by {_rms(score)} on sizes left out"


def _repeat(colours: Sequence[str]) -> list[str]:
    return list(colours) * 4


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("transfer", __doc__ or ""), ["transfer"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
