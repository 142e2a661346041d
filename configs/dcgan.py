"""The design document's baseline: a plain DCGAN, everything else is measured against it.

Binary cross-entropy, Adam 2e-4 with β1 0.5, weights from N(0, 0.02), strided and transposed convolutions (arXiv
1511.06434), the sentence joined to noise and to the discriminator's last map (arXiv 1605.05396); no gradient penalty, no
matching term, no shared weights. Layer norm stands in for batch norm: a picture may not depend on its neighbours in the
batch here. Both players move at once, as everywhere here (steps.py), where the paper's take turns.

python train.py dcgan
"""

from dallegan.config import AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
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
