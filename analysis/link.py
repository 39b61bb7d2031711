"""The link that a modeled bill is computed for: as configured, or as fitted to a run of the ``transfer`` experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analysis.command import check_experiment
from analysis.format import digits
from analysis.load import Run, RunError, load_run
from analysis.transfer import fastest, fit_links, median_points
from xpyd.economics.cost import LinkModel
from xpyd.units import bytes_per_s_to_gbps, gbps_to_bytes_per_s


@dataclass(frozen=True)
class Link:
    """A link, and where its figures come from."""

    model: LinkModel
    source: str

    @property
    def rate(self) -> str:
        return f"{digits(bytes_per_s_to_gbps(self.model.bytes_per_s))} Gb/s"


def configured_link(run: Run) -> Link:
    sweep = run.config["sweep"]
    model = LinkModel(sweep["alpha_s"], sweep["gamma_s"], gbps_to_bytes_per_s(sweep["rate_gbps"]))
    return Link(model, "as configured")


def fitted_link(path: Path) -> Link:
    """The link fitted to a run of the ``transfer`` experiment. Raises RunError."""
    run = load_run(path)
    check_experiment(run, ["transfer"])
    points = median_points(run.tables["transfer_points"])
    if points.empty:
        raise RunError(f"{path}: no transfer was timed; measure the link again")
    return Link(fastest(fit_links(run, points)).fit.model, f"fitted to {run.name}")
