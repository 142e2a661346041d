"""850 Twemoji concepts (CC-BY-4.0 art) over the storybook's landscapes at 64 px, with quickstart's networks. Two CPU cores; extra `emoji`.

python train.py emoji64
2 cores of an AMD EPYC with AVX2 only, jax 0.10.2, 2026-11-25: 1 h 4 min, 30.5 images/s, compiled in 47 s, other work beside it. By `python -m dallegan.evaluate
--n 2000`: KID 0.292 on `test`, 0.302 on `heldout`, precision and recall 0. Landscapes are right and things have their colours; shapes are not there after
115 k pictures of 850 kinds (docs/images/emoji64.png), and pictures of one caption are alike.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=3600,
        batch=32,
        data=DataConfig(source="emoji", size=64),
        text=TextConfig(encoder="rnn", vocab=4096, length=28, layers=1),
        model=ModelConfig(width=256, blocks=2, patch=4, attention=(), critic_patch=4, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1)),
        loss=LossConfig(gamma=(2.0, 0.3), penalty_share=0.25),
        optim=OptimConfig(lr=(5e-4, 1e-5), lr_d=(1e-3, 3e-5)),
        log=LogConfig(samples=12_800, checkpoint=12_800),
    )
