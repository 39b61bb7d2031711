"""Short measurements before the first request: prefill, decode step and link, from which the ledger is predicted.

All workers calibrate at the same time, since they will also work at the same time. The lengths and batches here are
not those of the workload: a prediction is never scored on the points that it was fitted to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from xpyd.economics.cost import ComputePoint, LinkPoint
from xpyd.model.runner import ModelRunner, Segment
from xpyd.placement import CLIENT_RANK
from xpyd.worker.session import Session
from xpyd.worker.wire_bench import measure_link

PREFILL_LENS = (16, 48, 96, 192, 384)
DECODE_BATCHES = (1, 2, 4, 8)
DECODE_CONTEXTS = (64, 256)
MIXED_CHUNKS = (32, 128)
REPEATS = 3
