"""One self-contained HTML page for a run of any experiment: verdict, tables, plots, requests, provenance.

python -m analysis.report runs/compare/20260101-120000-000000
python -m analysis.report --print --out page.html RUN
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis import (
    break_even,
    calibrate,
    check_cluster,
    codecs,
    command,
    compare,
    contention,
    economics,
    expert_parallel,
    handoff,
    interference,
    kv_cache,
    plan,
    regret,
    saturation,
    scaling,
    serve,
    simulate,
    speculation,
    transfer,
    tune,
    tune_colocated,
)
from analysis.load import Run, RunError, load_runs, read_config
from analysis.render import print_terminal, terminal
from analysis.results import Plot, Results
from analysis.style import RC, WIDTH_IN, svg_text

CLAIMS = "claims"
TEMPLATES = Path(__file__).parent / "templates"
ANALYSES: dict[str, Callable[[Run], Results]] = {
    "compare": compare.analyse,
    "serve": serve.analyse,
    "speculation": speculation.analyse,
    "transfer": transfer.analyse,
    "tune": tune.analyse,
    "tune_colocated": tune_colocated.analyse,
    "handoff": handoff.analyse,
    "kv_cache": kv_cache.analyse,
    "interference": interference.analyse,
    "contention": contention.analyse,
    "scaling": scaling.analyse,
    "saturation": saturation.analyse,
    "check_cluster": check_cluster.analyse,
    "economics": economics.analyse,
    "expert_parallel": expert_parallel.analyse,
    "simulate": simulate.analyse,
    "plan": plan.analyse,
    "regret": regret.analyse,
    "break_even": break_even.analyse,
    "calibrate": calibrate.analyse,
    "codecs": codecs.analyse,
}


def page(run: Run, results: Results) -> str:
    """The whole page as HTML: nothing in it is fetched from anywhere."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    return environment.get_template("report.html.j2").render(
        run=run,
        results=results,
        plots=[(plot, draw(plot)) for plot in results.plots],
        facts=facts(run),
        sources={
            "config.yaml": yaml.safe_dump(run.config, sort_keys=False),
            "environment.json": yaml.safe_dump(run.environment, sort_keys=False),
        },
    )


def draw(plot: Plot) -> Markup:
    """A plot as inline SVG."""
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, plot.height_in), layout="constrained")
        plot.draw(figure)
        return Markup(svg_text(figure))  # made by matplotlib from our own words; text in it is drawn as paths


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader wants to know of the run at a glance."""
    environment = run.environment
    routes = environment.get("routes", {})
    found = [
        ("experiment", run.experiment),
        ("model", str(run.config.get("model", {}).get("name", ""))),
        ("started", str(environment.get("started_at", ""))),
        ("commit", str(environment.get("commit", ""))[:12]),
        ("hosts", ", ".join(environment.get("hosts", []))),
        ("MPI", str(environment.get("mpi", ""))),
        ("KV routes", ", ".join(f"{pair} {route}" for pair, route in routes.items())),
        ("run folder", ", ".join(str(path) for path in run.paths)),
    ]
    return [(name, value) for name, value in found if value]


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        for path in options.runs:
            _check_has_none(path)
        (run,) = load_runs(options.runs, options.allow_partial)
        if run.experiment not in ANALYSES:
            raise RunError(f"{run.paths[0]}: experiment {run.experiment!r} has no report; known: {', '.join(ANALYSES)}")
        results = command.told(run, ANALYSES[run.experiment])
        out = options.out or run.paths[0] / "report.html"
        out.write_text(command.told(run, lambda run: page(run, results)))
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR
    if options.print:
        print_terminal(results, terminal())
    print(out)
    return 0


def _check_has_none(path: Path) -> None:
    """Raises RunError for a run of claims: runs of other experiments are in it, and its page is made elsewhere."""
    if (path / "config.yaml").is_file() and read_config(path)["experiment"] == CLAIMS:
        raise RunError(
            f"{path}: a run of claims has a page of its own: open {path / 'claims.html'}, which python -m "
            f"analysis.claims {path} judges and writes anew; the runs that it rests on are in {path / 'runs'}"
        )


def _parser() -> argparse.ArgumentParser:
    made = command.bare_parser("report", __doc__)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; repeats of one trial are pooled")
    made.add_argument("--out", type=Path, metavar="FILE", help="where the page goes (default: RUN/report.html)")
    made.add_argument("--print", action="store_true", help="print the tables too")
    made.add_argument("--allow-partial", action="store_true", help="read a run without DONE: stopped or still running")
    return made


if __name__ == "__main__":
    sys.exit(main())
