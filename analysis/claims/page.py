"""One self-contained HTML page: a card and a plot for every claim. Nothing in it is fetched from anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from analysis.claims import show
from analysis.claims.claim import Judgement
from analysis.claims.evaluate import Outcome
from analysis.report import TEMPLATES
from analysis.results import Plot
from analysis.style import RC, svg_text

WIDTH_IN = 5.0  # a card is half a page: text keeps its size
TONES = {
    Judgement.HOLDS: "split",
    Judgement.FAILS: "stay",
    Judgement.UNDECIDED: "open",
    Judgement.UNMEASURABLE: "none",
}


def page(name: str, outcomes: Sequence[Outcome], facts: Mapping[str, str]) -> str:
    """The whole page; ``facts``: what else a reader wants to know of the run, by name."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    plots = [show.plot(outcome) for outcome in outcomes]
    return environment.get_template("claims.html.j2").render(
        name=name,
        answer=show.answer(outcomes),
        because=show.because(outcomes),
        cards=[(outcome, plot, drawn(plot)) for outcome, plot in zip(outcomes, plots, strict=True)],
        tones=TONES,
        counts=[(judgement, TONES[judgement], _count(outcomes, judgement)) for judgement in Judgement],
        value=show.value,
        samples=show.samples,
        modeled=show.modeled,
        facts=facts,
    )


def drawn(plot: Plot) -> Markup:
    """A plot as inline SVG, as wide as a card."""
    with rc_context(RC):
        figure = Figure(figsize=(WIDTH_IN, plot.height_in), layout="constrained")
        plot.draw(figure)
        return Markup(svg_text(figure))  # made by matplotlib from our own words; text in it is drawn as paths


def _count(outcomes: Sequence[Outcome], judgement: Judgement) -> int:
    return sum(outcome.judgement is judgement for outcome in outcomes)
