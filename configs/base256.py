"""Your own captioned images at 256 px, for a host with eight GPUs or a small pod. Not yet run.

python train.py base256 --data.source folder:PATH
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, TextConfig


def config() -> Config:
    """Returns the preset."""
    return Config(
        steps=200_000,
        batch=256,
        data=DataConfig(source="folder:data", size=256, flip=True, threads=16),
        text=TextConfig(encoder="transformer", vocab=16_384, length=64, width=512, layers=6),
        model=ModelConfig(
            width=512,
            style=512,
            noise=256,
            attention=(8, 16),
            critic_widths=(128, 256, 512, 512, 512),
            critic_blocks=(1, 2, 2, 2, 1),
        ),
        loss=LossConfig(gamma=(50.0, 5.0)),
        log=LogConfig(metrics=51_200, samples=1_024_000, checkpoint=1_024_000),
    )
