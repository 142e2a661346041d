"""Your own captioned images at 256 px with about a billion parameters, for 256 TPU v5e. Not yet run.

python train.py large256 --data.source arrayrecord:DIR

Compiled for 256 simulated devices, a step needs 12.8 GiB of the 16 GiB of each (`python benchmarks/dryrun.py
large256 --topology cpu:256`). docs/pods.md estimates the time.
"""

from dataclasses import replace

from dallegan.config import Config, LogConfig, ParallelConfig

from . import base256


def config() -> Config:
    """Returns the preset."""
    base = base256.config()
    return replace(
        base,
        steps=500_000,
        batch=1024,
        data=replace(base.data, source="arrayrecord:data"),
        text=replace(base.text, vocab=32_768, width=1024, layers=10),
        model=replace(
            base.model,
            width=1536,
            style=1024,
            blocks=4,
            critic_widths=(256, 512, 1024, 1536, 1536),
            critic_blocks=(1, 2, 3, 4, 3),
        ),
        loss=replace(base.loss, penalty_share=0.25),
        parallel=ParallelConfig(fsdp=16),
        log=LogConfig(metrics=102_400, samples=5_120_000, checkpoint=5_120_000),
    )
