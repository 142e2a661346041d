"""Your own captioned pictures at 256 px, about 1 B parameters, for a slice of 256 TPU v5e: python train.py large256 --data.source arrayrecord:DIR

Not yet run. Compiled for 256 simulated devices, a step takes 12.8 GiB of each (of 16) with `fsdp 16` (`python benchmarks/dryrun.py large256 --topology
cpu:256`); docs/pods.md has more, and an estimate of the time.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, ParallelConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=500_000,
        batch=1024,
        data=DataConfig(source="arrayrecord:data", size=256, flip=True, threads=16),
        text=TextConfig(encoder="transformer", vocab=32_768, length=64, width=1024, layers=10),
        model=ModelConfig(
            width=1536, style=1024, noise=256, blocks=4, attention=(8, 16), critic_widths=(256, 512, 1024, 1536, 1536), critic_blocks=(1, 2, 3, 4, 3)
        ),
        loss=LossConfig(gamma=(50.0, 5.0), penalty_share=0.25),
        parallel=ParallelConfig(fsdp=16),
        log=LogConfig(metrics=102_400, samples=5_120_000, checkpoint=5_120_000),
    )
