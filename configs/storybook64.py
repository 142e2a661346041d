"""Storybook at 64 px from scratch, one or two objects in an image, for one GPU. Not yet run to its end.

python train.py storybook64
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, TextConfig


def config() -> Config:
    """Returns the preset."""
    return Config(
        steps=20_000,
        batch=256,
        data=DataConfig(source="storybook", size=64, objects=2, threads=8),
        text=TextConfig(encoder="transformer", length=32, width=256, layers=2),
        model=ModelConfig(
            width=256,
            style=512,
            noise=128,
            attention=(8, 16),
            critic_widths=(128, 256, 512),
            critic_blocks=(2, 2, 1),
        ),
        loss=LossConfig(gamma=(5.0, 0.5)),
        log=LogConfig(metrics=25_600, samples=256_000, evaluate=256_000, checkpoint=256_000),
    )
