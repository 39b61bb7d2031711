"""Codecs: what fp8, int8 and lossless compression save on the wire, what they cost in time, and in tokens.

python -m experiments.codecs
python -m experiments.codecs model=checkpoint model.checkpoint=FOLDER sweep.prompts=prompts.json sweep.rate_gbps=25
"""

from __future__ import annotations

from xpyd.compose import ROOT
from xpyd.config.base import ConfigError
from xpyd.config.engine import Codecs
from xpyd.entry import Job, main
from xpyd.environment import lone_environment
from xpyd.run_dir import RowWriter


def run(job: Job) -> None:
    from xpyd.worker.codecs import CodecProbe  # torch

    config: Codecs = job.config
    job.run_dir.write_json("environment.json", lone_environment(ROOT, config.sweep.labels(config.model.checkpoint)))
    job.say(f"prefilling {config.sweep.num_prompts} prompts of each of {list(config.sweep.input_lens)} tokens")
    try:
        probe = CodecProbe(config.model, config.sweep)
    except ValueError as error:  # a checkpoint or a shape that cannot run: its message says it all
        raise ConfigError(str(error)) from None
    with RowWriter(job.run_dir, rank=0) as rows:
        job.say(f"timing {len(config.sweep.codecs)} codecs, {config.sweep.num_repeats} times each prompt")
        for point in probe.time():
            rows.write(point)
        exact = probe.exact()
        for done, codec in enumerate(config.sweep.codecs, start=1):
            job.say(f"decoding from KV in codec {codec.label} ({done}/{len(config.sweep.codecs)})")
            for row in probe.diverge(codec, exact):
                rows.write(row)
            rows.flush()


if __name__ == "__main__":
    main("codecs", run)
