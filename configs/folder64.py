"""A few hundred captioned pictures of your own at 64 px, on from `storybook-64`, with what the discriminator sees augmented. A 2-core CPU.

python train.py folder64 --data.source folder:my_pictures --workdir runs/mine

On 400 emoji (`python benchmarks/emoji_folder.py my_pictures`), 2 cores of an AMD EPYC (AVX-512), jax 0.10.2, 2026-11-28: 38 min, 15 images/s beside other
work. By `python -m dallegan.evaluate --model runs/mine --n 1000`: KID 0.142, precision 0.35, recall 0.01, coverage 0.30, memorized 0.000, diversity within a
caption 12.9. It neither collapses nor copies, and draws things on white, of a shape and colours of its caption, which are seldom the picture's; some have
stripes, and what the caption names can be recognized in few. A discriminator with matching at 1, a contrastive term and thrice the rate knows the pairs by
heart at the end (match gap 11.8, here 2.1), and is behind by every figure: KID 0.154, precision 0.14, coverage 0.20. Both went on from
the `storybook-64` of that day, which had no shrinkage, without it: photographs, whose grain it takes, want `--model.shrink` with nothing behind it.
"""

from dallegan.config import AugmentConfig, Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=1100,
        batch=32,
        init_from="storybook-64",
        data=DataConfig(source="folder:my_pictures", size=64, flip=True),
        text=TextConfig(encoder="rnn", length=32, layers=1, prenorm=True),
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
        loss=LossConfig(gamma=(2.0, 0.5), penalty_share=0.25, matching=0.3, contrast=(0.0, 0.0)),
        augment=AugmentConfig(shift=0.125, colour=0.5, cutout=0.5),
        optim=OptimConfig(lr=(3e-4, 1e-5), lr_d=(1e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=6_400, checkpoint=6_400),
    )
