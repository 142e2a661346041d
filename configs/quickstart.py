"""Built-in storybook at 32 px, one object a scene, sized for a 2-core CPU.

python train.py

2 cores of an AMD EPYC (AVX-512), jax 0.10.2, 2026-11-24: 12 min 42 s, 146 images/s, compiled in 9 s. Places and colours come
out right; boats, flowers, umbrellas and most bears are recognizable, cats at night are not; pictures of one prompt are alike,
and a fine noise of dots remains. Judged by eye: there is no metric yet.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=3200,
        batch=32,
        data=DataConfig(source="storybook", size=32, objects=1, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(width=256, blocks=2, attention=(), critic_patch=2, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1)),
        loss=LossConfig(gamma=(1.0, 0.1), penalty_share=0.25),
        log=LogConfig(samples=25_600, checkpoint=12_800),
    )
