"""850 Twemoji concepts (art under CC-BY-4.0) in the storybook's landscapes at 64 px, on from `storybook-64`.

python train.py emoji64   (extra `emoji`)

Two cores of an AMD EPYC (AVX-512), 1 h 6 min, 15 images/s. By `dallegan evaluate --n 2000`: KID 0.051,
precision 0.20, coverage 0.23 (test).
"""

from dataclasses import replace

from dallegan.config import Config, DataConfig, LogConfig

from . import fine64


def config() -> Config:
    """Returns the preset."""
    base = fine64.shipped()
    return replace(
        base,
        steps=1900,
        data=DataConfig(source="emoji", size=64),
        text=replace(base.text, vocab=4096),
        loss=replace(base.loss, gamma=(0.3, 0.05)),
        log=LogConfig(samples=16_000, checkpoint=8_000),
    )
