"""Storybook at 64 px, one or two objects: `pairs32` with patches twice as large and a first detail stage.

python train.py pairs64   (after runs/narrow-pairs, which recipes/storybook-64.sh makes)

Two cores of an Intel Xeon (AVX-512), 2 h, 27 images/s. Captions of two objects are fully obeyed in 88 % (of
119), of one object in 99 % (of 137), KID 0.044.
"""

from dataclasses import replace

from dallegan.config import Config

from . import pairs32


def config() -> Config:
    """Returns the preset."""
    base = pairs32.config()
    return replace(
        base,
        steps=6000,
        seed=13,
        init_from="runs/narrow-pairs",
        data=replace(base.data, size=64),
        # a narrow style vector: the weights of the model that ships must stay below 16 MiB
        model=replace(base.model, style=152, patch=4, refine=128, detail=(64,), critic_patch=4),
        loss=replace(base.loss, gamma=(0.8, 0.08)),
        optim=replace(base.optim, lr=(5e-4, 1e-5), lr_d=(5e-4, 1e-5)),
        log=replace(base.log, samples=16_000, checkpoint=8_000),
    )
