"""Step times and link of a simulation: from a calibration file, or in closed form from model and machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from xpyd.economics.cost import ComputeModel, ComputePoint, LinkModel, fit_compute
from xpyd.economics.delays import NO_DELAYS, Delays
from xpyd.economics.engine import EngineModel, Scatter
from xpyd.economics.moving import UNKNOWN, MovingModel
from xpyd.model.spec import ModelSpec
from xpyd.simulate.config import MachineConfig
from xpyd.units import gbps_to_bytes_per_s

CHUNKS = ((64, 0), (256, 0), (1024, 0), (4096, 0), (2048, 4096))  # (new tokens, tokens cached before them)
EMULATED = "emulated link"  # a label of environment.json
WIRE_BOUND = 0.8  # of the nominal rate: what is lost then are headers and gaps
DECODES = tuple(product((1, 4, 16, 64, 256), (256, 2048, 8192)))  # (sequences, context of each)


@dataclass(frozen=True)
class Costs:
    """What a simulation reckons with, and where it is from: a label for its tables.

    ``slowness``: of each of the calibration's short blocks, relative to all of them, in groups that were played within
    seconds of each other: how even the machine was.
    ``engines``: what a step of each role takes in a run, from what it takes alone (``compute``); ``scatters``: how such
    steps lay about that. Both empty where nothing was played.
    ``made_gbps``: fabric.rate_gbps of the calibration, if there was one; ``calibrated_gbps``: the same, if its wire was
    emulated, and so had that rate.
    """

    compute: ComputeModel
    link: LinkModel
    label: str
    moving: MovingModel = UNKNOWN
    delays: Delays = NO_DELAYS
    slowness: tuple[tuple[float, ...], ...] = ()
    made_gbps: float | None = None
    calibrated_gbps: float | None = None
    engines: Mapping[str, EngineModel] = field(default_factory=dict)
    scatters: Mapping[str, Scatter] = field(default_factory=dict)

    def slower(self, factor: float) -> Costs:
        """The same with steps that take so many times as long."""
        return replace(self, compute=EngineModel(factor, factor).of(self.compute), slowness=())


def closed_form(spec: ModelSpec, machine: MachineConfig, rate_gbps: float) -> Costs:
    """The roofline of one rank, fitted by the step model; the link at its nominal rate."""
    roofline = machine.build()
    points = [ComputePoint(roofline.step_s(spec, new, cached), new, cached) for new, cached in CHUNKS]
    points += [
        ComputePoint(roofline.step_s(spec, 0, 0, seqs, context), 0, 0, seqs, seqs * context)
        for seqs, context in DECODES
    ]
    link = LinkModel(machine.alpha_s, machine.gamma_s, gbps_to_bytes_per_s(rate_gbps))
    fitted = fit_compute(points)
    return Costs(fitted.model, link, f"closed form, fits its roofline to {fitted.score.rms_error:.0%}")


def at_rate(link: LinkModel, link_gbps: float, calibrated_gbps: float | None = None) -> LinkModel:
    """The calibrated link where the wire has another rate.

    One that was nearly as fast as its own wire (``calibrated_gbps``) is limited by it, and gets the same share of
    another. Else, or where that is not known, neither the wire nor the software is outrun, by several transfers either.
    """
    wire = gbps_to_bytes_per_s(link_gbps)
    share = 0.0 if calibrated_gbps is None else link.bytes_per_s / gbps_to_bytes_per_s(calibrated_gbps)
    bytes_per_s = share * wire if share >= WIRE_BOUND else min(link.bytes_per_s, wire)
    most = max(1.0, wire / bytes_per_s)
    return replace(link, bytes_per_s=bytes_per_s, gain_2=min(link.gain_2, most), gain_4=min(link.gain_4, most))


def read_calibration(path: Path, spec: ModelSpec) -> Costs:
    """A file of ``experiments.calibrate``. Raises ValueError where it is none, or of another model."""
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        conditions = content["conditions"]
        made_for = conditions["model"]
        # Of a real wire the configured rate is often a guess, of an emulated one it is what was asked for.
        made_gbps = conditions.get("rate_gbps")
        wire_gbps = made_gbps if EMULATED in conditions.get("labels", ()) else None
        compute = ComputeModel(**{name: float(found["value"]) for name, found in content["compute"].items()})
        link = LinkModel(**{name: float(found["value"]) for name, found in content["link"].items()})
        measured = content.get("moving")  # none in files of before it was measured
        engines = {
            role: EngineModel(**{name: float(found["value"]) for name, found in each.items()})
            for role, each in content.get("engine", {}).items()
        }
        scatters = {
            role: Scatter(tuple(each["prefill"]), tuple(each["decode"]))
            for role, each in content.get("scatter", {}).items()
        }
        # Version 2 had one list of all blocks, from which no drift can be told.
        groups = [tuple(map(float, each)) for each in content.get("slowness", []) if isinstance(each, list)]
        moving = MovingModel(**{name: float(found["value"]) for name, found in (measured or {}).items()})
        waited = content.get("delays")  # none in files of before version 5
        delays = Delays(**{name: float(found["value"]) for name, found in (waited or {}).items()})
    except OSError as error:
        raise ValueError(
            f"simulate.calibration={path}: cannot be read ({error.strerror}); give the calibration.yaml of a run of "
            "python -m experiments.calibrate"
        ) from None
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"simulate.calibration={path}: no calibration file ({type(error).__name__}: {error}); make one with "
            "python -m experiments.calibrate"
        ) from None
    if made_for != spec.name:
        raise ValueError(
            f"simulate.calibration={path}: made for model {made_for}, here {spec.name}; calibrate this one"
        )
    lacks = ["what moving KV costs the steps beside it"] * (not measured) + ["what messages take"] * (not waited)
    label = ", but for ".join(["calibrated", " and ".join(lacks)]) if lacks else "calibrated"
    return Costs(compute, link, label, moving, delays, tuple(groups), made_gbps, wire_gbps, engines, scatters)
