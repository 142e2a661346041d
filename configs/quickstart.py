"""Built-in storybook at 32 px, one object a scene, sized for a 2-core CPU.

python train.py

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27, as `benchmarks/quality.py quickstart --budget 900` (2,369 steps): 15 min 47 s with
twelve evaluations, 80 images/s, compiled in 14 s. By `python -m dallegan.evaluate --n 2000`: every named attribute right in 81 % of `test` and 80 % of
`heldout`; kind 84 %, pose 86 %, colour, size and place 99.8 % or more; Chinese 82 %, English 80 %; KID 0.123. With `--steps 3600` on 2 cores of an AMD EPYC
(AVX2), 2026-11-26: 42 min 3 s, 46 images/s; 89 % and 87 %, KID 0.095. Weaknesses: a fine noise (precision 0.003), pictures of one prompt much alike, and
cats at night are hard to see.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=2400,
        batch=32,
        data=DataConfig(source="storybook", size=32, objects=1, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(width=256, blocks=1, attention=(), critic_patch=2, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1)),
        loss=LossConfig(gamma=(1.0, 0.2), penalty_share=0.125),
        optim=OptimConfig(lr=(1e-3, 3e-4), lr_d=(1e-3, 2e-4), muon=25.0, ema=0.12),
        log=LogConfig(samples=25_600, evaluate=12_800, checkpoint=12_800),
    )
