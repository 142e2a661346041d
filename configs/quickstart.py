"""Built-in storybook at 32 px, one object a scene, sized for a 2-core CPU.

python train.py

2 cores of an AMD EPYC (AVX2, GEMM 126 GF/s), jax 0.10.2, 2026-11-29: 34 min, 38 images/s (42 alone, by benchmarks/train_speed.py), compiled in 32 s. By
`python -m dallegan.evaluate --n 2000`: every named attribute right in 81 % of `test` and 77 % of `heldout`; kind 84 %, pose 88 %, size 99 %, colour and
place 99.8 % or more; Chinese 83 %, English 80 %; KID 0.061. Without shrinkage (`--model.shrink`), 2026-11-26 and 27, on 2 cores of an Intel Xeon
(AVX-512, GEMM 305 GF/s): 15 min 47 s with twelve evaluations, 80 images/s, compiled in 14 s, 2,369 steps; 81 % and 80 %, but KID 0.123; with `--steps 3600`
on an EPYC 89 % and 87 %, KID 0.095. Weaknesses: dots along edges (precision 0.035), pictures of one prompt much alike, and cats at night are hard to see.
Thresholds as large as these take from pictures what is fainter than some ten grey levels: photographs want none (`--model.shrink`), and a run of hours
smaller ones, such as 2 1 1.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=2400,
        batch=32,
        data=DataConfig(source="storybook", size=32, objects=1, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(width=256, blocks=1, attention=(), critic_patch=2, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1), shrink=(10, 5, 2.5)),
        loss=LossConfig(gamma=(1.0, 0.2), penalty_share=0.125),
        optim=OptimConfig(lr=(1e-3, 3e-4), lr_d=(1e-3, 2e-4), muon=25.0, ema=0.12),
        log=LogConfig(samples=25_600, evaluate=12_800, checkpoint=12_800),
    )
