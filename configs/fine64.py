"""The default model that ships, `storybook-64`: `pairs64` with a second stage of detail, at single pixels. A 2-core CPU.

python train.py fine64

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27: 1 h 8 min, 19 images/s beside some other work (22.7 by benchmarks/train_speed.py),
compiled in 24 s. By `python -m dallegan.evaluate --n 2000`: right in everything 98.3 % of captions of one object and 88.7 % of those of two (`test`), 98.8 and
88.2 % (`heldout`); each object where it belongs in 99.5 %, each colour on its own object in 89.7 %; 1,271 of 1,280 combinations; KID 0.034, precision 0.27,
recall 0.58.
Saved with `dallegan.load("runs/fine64").save(FOLDER)`.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=2400,
        batch=32,
        seed=14,
        init_from="runs/pairs64",
        data=DataConfig(source="storybook", size=64, objects=2, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=28, layers=1, prenorm=True),
        model=ModelConfig(
            width=256,
            style=152,
            blocks=2,
            patch=4,
            refine=128,
            detail=(64, 16),
            attention=(4, 8),
            critic_patch=4,
            critic_widths=(128, 128, 256),
            critic_blocks=(0, 2, 1),
        ),
        loss=LossConfig(gamma=(0.16, 0.04), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(4e-4, 1e-5), lr_d=(4e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=16_000, evaluate=16_000, checkpoint=8_000),
    )
