"""`storybook-32` on with scenes of one or two objects ("a red cat to the left of a blue house"), 32 px. A 2-core CPU.

python train.py pairs32

FIGURES
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=9600,
        batch=32,
        seed=11,
        init_from="storybook-32",
        data=DataConfig(source="storybook", size=32, objects=2, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=28, layers=1, prenorm=True),
        model=ModelConfig(width=256, blocks=2, refine=64, attention=(4, 8), critic_patch=2, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1)),
        loss=LossConfig(gamma=(0.3, 0.05), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(6e-4, 1e-5), lr_d=(8e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=32_000, evaluate=16_000, checkpoint=16_000),
    )
