"""Codecs: bytes saved, time at both ends, the net bill and its break-even link rate, and how far the tokens drift.

python -m analysis.codecs runs/codecs/20260101-120000-000000
python -m analysis.codecs --link runs/transfer/20260101-110000-000000 runs/codecs/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.divergence import CELLS, Drift, drift_cells, drift_notes, drift_table, measure_drift
from analysis.format import digits, number, sentence
from analysis.link import Link, configured_link, fitted_link
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import INK, MUTED, SERIES, seconds_axis
from analysis.tables import config_columns
from xpyd.economics.codecs import CodecCost, codec_breakeven_bytes_per_s, coded_bill_s, direct_bill_s
from xpyd.economics.cost import LinkModel
from xpyd.units import GIGA, bytes_per_s_to_gbps, format_bytes, gbps_to_bytes_per_s

NO_CODEC = "none"
MS_PER_S = 1e3
BUSY = 1.2  # wall over CPU seconds
RATES_GBPS = np.geomspace(0.1, 400, 60)
POINT = ["codec", "input_len", "prompt"]


@dataclass(frozen=True)
class Found:
    """One codec: its cost for the longest prompts, seconds per decimal GB of KV over all prompts, and its drift."""

    codec: str
    cost: CodecCost
    encode_s_per_gbyte: float
    decode_s_per_gbyte: float
    drift: Drift | None

    @property
    def encoded_share(self) -> float:
        return self.cost.encoded_bytes / self.cost.raw_bytes


def analyse(run: Run, link_run: Path | None = None) -> Results:
    """Raises RunError where no codec was timed, or the link's run cannot be read."""
    points = run.tables["codec_points"]
    if points.empty:
        raise RunError(f"{run.paths[0]}: no codec was timed; let the run go on, or measure again")
    link = configured_link(run) if link_run is None else fitted_link(link_run)
    found = measure_codecs(run, points)
    input_len = int(points["input_len"].max())
    answer, because = headline(found, link)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=answer,
        because=because,
        tables=[codec_table(run, found, link, input_len)],
        frame=tidy_codecs(run, found, link),
        plots=[
            Plot(
                "Net bill against link rate",
                f"The bill of a prompt of {input_len} tokens: codec time measured on this CPU, wire modeled. Dots: "
                "break-even; a codec pays to the left of its dot. Dashed: no codec. Dotted: the link of the table.",
                lambda figure: draw_bills(figure, found, link),
            )
        ],
        details=[drift_table(run)],
    )


def measure_codecs(run: Run, points: pd.DataFrame) -> list[Found]:
    """One Found per codec, in the order of the config: medians over repeats, means over prompts."""
    medians = points.groupby(POINT).median(numeric_only=True).reset_index()
    layer_bytes = medians["encoded_bytes"] / medians["num_layers"]
    medians["num_pieces"] = medians["num_layers"] * np.ceil(layer_bytes / run.config["sweep"]["max_piece_bytes"])
    raw_pieces = medians[medians["codec"] == NO_CODEC].set_index(["input_len", "prompt"])["num_pieces"]
    drifts = measure_drift(run.tables["divergence"])
    found = []
    for codec in points["codec"].drop_duplicates():
        own = medians[medians["codec"] == codec]
        longest = own[own["input_len"] == own["input_len"].max()]
        raw_gbytes = own["raw_bytes"].sum() / GIGA
        found.append(
            Found(
                codec,
                _cost(codec, longest, float(raw_pieces.loc[int(longest["input_len"].iloc[0])].mean())),
                float(own["encode_s"].sum() / raw_gbytes),
                float(own["decode_s"].sum() / raw_gbytes),
                drifts.get(codec),
            )
        )
    order = [*drifts, *sorted(set(points["codec"]) - set(drifts))]
    return sorted(found, key=lambda each: order.index(each.codec))


def _cost(codec: str, chosen: pd.DataFrame, raw_pieces: float) -> CodecCost:
    """Without a codec nothing is staged: KV goes from pool to pool, and the measured copies are not in its bill."""
    mean = chosen.mean(numeric_only=True)
    staged = 0.0 if codec == NO_CODEC else 1.0
    return CodecCost(
        raw_bytes=float(mean["raw_bytes"]),
        encoded_bytes=float(mean["encoded_bytes"]),
        num_raw_pieces=raw_pieces,
        num_pieces=float(mean["num_pieces"]),
        encode_s=staged * float(mean["encode_s"]),
        decode_s=staged * float(mean["decode_s"]),
    )


def headline(found: Sequence[Found], link: Link) -> tuple[str, str]:
    """Whether any codec pays on this link, and what the best one costs in tokens."""
    direct_s = direct_bill_s(link.model, found[0].cost)
    rivals = [each for each in found if each.codec != NO_CODEC]
    if not rivals:
        return "Only the null control was measured.", "Add codecs to sweep.codecs."
    best = min(rivals, key=lambda each: coded_bill_s(link.model, each.cost))
    bill_s, rate = coded_bill_s(link.model, best.cost), f"{_breakeven(best, link)} Gb/s"
    tokens = f"; {number(best.drift.agreement, 'share')} of its tokens equal the exact ones" if best.drift else ""
    if bill_s < direct_s:
        saved = f"{number(direct_s - bill_s, 's')} of {number(direct_s, 's')}"
        return f"{best.codec} saves {saved} per prompt at {link.rate}.", sentence(f"it pays below {rate}{tokens}")
    because = f"the best, {best.codec}, pays below {rate}: above it, its time on this CPU exceeds what the wire saves"
    return f"No codec pays at {link.rate}.", sentence(because + tokens)


def codec_table(run: Run, found: Sequence[Found], link: Link, input_len: int) -> Table:
    direct_s = direct_bill_s(link.model, found[0].cost)
    rows = []
    for each in found:
        bill_s = coded_bill_s(link.model, each.cost)
        saved_s = direct_s - bill_s
        rows.append(
            (
                each.codec,
                digits(each.encoded_share * 100),
                digits(each.encode_s_per_gbyte),
                digits(each.decode_s_per_gbyte),
                digits(bill_s * MS_PER_S),
                f"{saved_s * MS_PER_S:+.3g}" if each.codec != NO_CODEC else "",
                _breakeven(each, link),
                *drift_cells(each.drift),
            )
        )
    columns = ("codec", "bytes %", "encode s/GB", "decode s/GB", "bill ms", "saved ms", "pays below Gb/s", *CELLS)
    model = link.model
    notes = [
        f"Bill at {link.rate}, of a prompt of {input_len} tokens ({format_bytes(found[0].cost.raw_bytes)} of KV): "
        f"codec time measured, wire modeled ({link.source}: {number(model.alpha_s, 's')} each transfer, "
        f"{number(model.gamma_s, 's')} each piece). Nothing overlaps. Bytes: of the pool's, with scales and headers.",
        "Encode, decode: CPU seconds of one core of this machine per GB of KV, with the gather from the pool and the "
        "scatter back; not those of a GPU. none: these copies alone, which its bill has not (KV goes pool to pool).",
        *busy_notes(run.tables["codec_points"]),
        *drift_notes(run),
    ]
    config = run.config["model"]
    model_name = (
        Path(config["checkpoint"]).name if config.get("checkpoint") else f"{config['name']} in {config['dtype']}"
    )
    title = f"KV codecs, {model_name}"
    return Table(titled(title, run.labels), columns, rows, notes)


def busy_notes(points: pd.DataFrame) -> list[str]:
    """A word where the core was shared: CPU seconds leave out the waiting, not the cold caches after it."""
    waited = float((points["wall_s"] / (points["encode_s"] + points["decode_s"])).median())
    if waited < BUSY:
        return []
    return [
        f"This machine was busy: the codecs took {digits(waited)} times their CPU time by the clock, and shared their "
        "caches; on a quiet one they are faster."
    ]


def draw_bills(figure: Figure, found: Sequence[Found], link: Link) -> None:
    axes = figure.add_subplot()
    bytes_per_s = [gbps_to_bytes_per_s(rate) for rate in RATES_GBPS]
    links = [LinkModel(link.model.alpha_s, link.model.gamma_s, rate) for rate in bytes_per_s]
    axes.plot(RATES_GBPS, [direct_bill_s(at, found[0].cost) for at in links], "--", color=INK, label="no codec")
    colours = iter(SERIES * 4)
    for each in found:
        if each.codec == NO_CODEC:
            continue
        colour = next(colours)
        axes.plot(RATES_GBPS, [coded_bill_s(at, each.cost) for at in links], color=colour, label=each.codec)
        rate = codec_breakeven_bytes_per_s(link.model.gamma_s, each.cost)
        if RATES_GBPS[0] <= bytes_per_s_to_gbps(rate) <= RATES_GBPS[-1]:
            at = LinkModel(link.model.alpha_s, link.model.gamma_s, rate)
            axes.plot(bytes_per_s_to_gbps(rate), direct_bill_s(at, each.cost), "o", color=colour, markersize=6)
    axes.axvline(bytes_per_s_to_gbps(link.model.bytes_per_s), color=MUTED, linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="link rate, Gb/s", ylabel="bill per prompt")
    axes.xaxis.set_major_formatter("{x:g}")
    seconds_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


def tidy_codecs(run: Run, found: Sequence[Found], link: Link) -> pd.DataFrame:
    rows = []
    for each in found:
        breakeven = codec_breakeven_bytes_per_s(link.model.gamma_s, each.cost)
        rows.append(
            {
                **config_columns(run),
                "codec": each.codec,
                "link": link.source,
                "link_gbps": bytes_per_s_to_gbps(link.model.bytes_per_s),
                **asdict(each.cost),
                "encode_s_per_gbyte": each.encode_s_per_gbyte,
                "decode_s_per_gbyte": each.decode_s_per_gbyte,
                "bill_s": coded_bill_s(link.model, each.cost),
                "saved_s": direct_bill_s(link.model, each.cost) - coded_bill_s(link.model, each.cost),
                "breakeven_gbps": bytes_per_s_to_gbps(breakeven),
                **(asdict(each.drift) if each.drift else {}),
            }
        )
    return pd.DataFrame(rows)


def _breakeven(each: Found, link: Link) -> str:
    """The rate below which the codec pays, in a cell."""
    rate = bytes_per_s_to_gbps(codec_breakeven_bytes_per_s(link.model.gamma_s, each.cost))
    if np.isnan(rate):
        return ""
    if np.isinf(rate):
        return "any"
    return digits(rate) if rate else "never"


def main(argv: Sequence[str] | None = None) -> int:
    made = command.parser("codecs", __doc__ or "")
    made.add_argument(
        "--link", type=Path, metavar="RUN", help="a transfer run, whose fitted link replaces the config's"
    )

    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run, options.link)

    return command.main(made, ["codecs"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
