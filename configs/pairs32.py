"""Storybook at 32 px, one or two objects ("a red cat to the left of a blue house"), on from `storybook-32`.

python train.py pairs32   (recipes/storybook-64.sh has the second run, which follows)

Two cores of an Intel Xeon (AVX-512), 2 h 55 min for both runs, 49 images/s. By `dallegan evaluate --n 2000`,
captions of two objects are fully obeyed in 88.2 %, of one object in 98.1 % (test), KID 0.014.
"""

from dataclasses import replace

from dallegan.config import Config

from . import storybook32


def config() -> Config:
    """Returns the preset."""
    base = storybook32.config()
    return replace(
        base,
        steps=9600,
        seed=11,
        init_from="storybook-32",
        data=replace(base.data, objects=2),
        text=replace(base.text, length=28, prenorm=True),
        model=replace(base.model, refine=64, attention=(4, 8)),
        loss=replace(base.loss, gamma=(0.3, 0.05), penalty_share=0.125, diversity=1.0),
        optim=replace(base.optim, lr=(6e-4, 1e-5), lr_d=(8e-4, 1e-5), muon=25.0),
    )
