"""Step times and link of a simulation: from a calibration file, or in closed form from model and machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from xpyd.economics.cost import ComputeModel, ComputePoint, LinkModel, fit_compute
from xpyd.model.spec import ModelSpec
from xpyd.simulate.config import MachineConfig
from xpyd.units import gbps_to_bytes_per_s

CHUNKS = ((64, 0), (256, 0), (1024, 0), (4096, 0), (2048, 4096))  # (new tokens, tokens cached before them)
DECODES = tuple(product((1, 4, 16, 64, 256), (256, 2048, 8192)))  # (sequences, context of each)


@dataclass(frozen=True)
class Costs:
    """What a simulation reckons with, and where it is from: a label for its tables."""

    compute: ComputeModel
    link: LinkModel
    label: str


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


def at_rate(link: LinkModel, link_gbps: float) -> LinkModel:
    """The calibrated link where the wire has another rate: neither the wire nor the software is outrun."""
    return replace(link, bytes_per_s=min(link.bytes_per_s, gbps_to_bytes_per_s(link_gbps)))


def read_calibration(path: Path, spec: ModelSpec) -> Costs:
    """A file of ``experiments.calibrate``. Raises ValueError where it is none, or of another model."""
    try:
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        made_for = content["conditions"]["model"]
        compute = ComputeModel(**{name: float(found["value"]) for name, found in content["compute"].items()})
        link = LinkModel(**{name: float(found["value"]) for name, found in content["link"].items()})
    except OSError as error:
        raise ValueError(
            f"simulate.calibration={path}: cannot be read ({error.strerror}); give the calibration.yaml of a run of "
            "python -m experiments.calibrate"
        ) from None
    except (KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"simulate.calibration={path}: no calibration file ({type(error).__name__}: {error}); make one with "
            "python -m experiments.calibrate"
        ) from None
    if made_for != spec.name:
        raise ValueError(
            f"simulate.calibration={path}: made for model {made_for}, here {spec.name}; calibrate this one"
        )
    return Costs(compute, link, "calibrated")
