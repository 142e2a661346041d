"""Built-in storybook at 32 px, one object a scene, sized for a 2-core CPU.

python train.py
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=3400,
        batch=32,
        data=DataConfig(source="storybook", size=32, objects=1),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(width=128, blocks=2, attention=()),
        loss=LossConfig(gamma=(1.0, 0.1), penalty_share=0.25),
        optim=OptimConfig(lr=(3e-4, 1e-5)),
        log=LogConfig(samples=13_600, checkpoint=13_600),
    )
