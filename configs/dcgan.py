"""The baseline of all measurements: a plain DCGAN (arXiv 1511.06434) with captions (arXiv 1605.05396).

python train.py dcgan

Binary cross-entropy, Adam with β1 0.5, transposed convolutions; no penalty, no matching term, no shared
weights. Two deviations: layer norm instead of batch norm, so that an image does not depend on its neighbours
in the batch, and both players move at once (`dallegan/steps.py`), where the papers' take turns.
"""

from dallegan.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TextConfig,
)


def config() -> Config:
    """Returns the preset."""
    return Config(
        steps=1800,
        batch=64,
        data=DataConfig(source="storybook", size=32, objects=1),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(recipe="dcgan", tied=False),
        loss=LossConfig(adversarial="nonsaturating", gamma=(0.0, 0.0), matching=0.0, contrast=(0.0, 0.0)),
        augment=AugmentConfig(shift=0.0),
        optim=OptimConfig(lr=(2e-4, 2e-4), lr_d=(2e-4, 2e-4), fan=0, warmup=0.0, betas=(0.5, 0.999)),
    )
