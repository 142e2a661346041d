"""`pairs32` grown to 64 px, in patches twice as large, with a stage of detail in decoder and discriminator. A 2-core CPU.

python benchmarks/prune.py runs/pairs32-end runs/narrow-pairs --style 152 && python train.py pairs64

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27: 2 h, 27 images/s, compiled in 20 s. At its end 88 % of 119 captions of two objects
and 99 % of 137 of one are right in everything; KID 0.044, precision 0.30, recall 0.58 of 600 pictures of one object (benchmarks/LOG.md). `fine64` goes on from
it. The style vector is narrowed because all of it, the stage and the attention would be more than the 16 MiB that weights have in the package.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=6000,
        batch=32,
        seed=13,
        init_from="runs/narrow-pairs",
        data=DataConfig(source="storybook", size=64, objects=2, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=28, layers=1, prenorm=True),
        model=ModelConfig(
            width=256,
            style=152,
            blocks=2,
            patch=4,
            refine=128,
            detail=(64,),
            attention=(4, 8),
            critic_patch=4,
            critic_widths=(128, 128, 256),
            critic_blocks=(0, 2, 1),
        ),
        loss=LossConfig(gamma=(0.8, 0.08), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(5e-4, 1e-5), lr_d=(5e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=16_000, evaluate=16_000, checkpoint=8_000),
    )
