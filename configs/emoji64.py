"""850 Twemoji concepts (CC-BY-4.0 art) over the storybook's landscapes at 64 px, on from `storybook-64`. A 2-core CPU; extra `emoji`.

python train.py emoji64

2 cores of an AMD EPYC (AVX-512), jax 0.10.2, 2026-11-28: 1 h 6 min, 15.3 images/s, compiled in 23 s, other work beside it. By `python -m dallegan.evaluate
--model runs/emoji64 --n 2000`: KID 0.051 on `test`, 0.050 on `heldout` (0.292 and 0.302 from nothing with quickstart's networks, 115 k pictures), precision
0.20 and 0.15, recall 0.06, coverage 0.23 and 0.18. Landscapes, sizes and colours are right, and apples, cacti and bears can be known; of most of the 850
kinds, each seen 72 times, there is a shape of its own that one could not name (docs/images/emoji64.png). The discriminator knows the pairs by heart at the
end (match gap 8.3). The run had a tenth of its false captions name pairs that `heldout` is about, which they do no longer; and it went on from the
`storybook-64` of that day, which had no shrinkage, without it.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=1900,
        batch=32,
        init_from="storybook-64",
        data=DataConfig(source="emoji", size=64),
        text=TextConfig(encoder="rnn", vocab=4096, length=28, layers=1, prenorm=True),
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
            shrink=(2, 1, 1),
        ),
        loss=LossConfig(gamma=(0.3, 0.05), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(4e-4, 1e-5), lr_d=(4e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=16_000, checkpoint=8_000),
    )
