"""`storybook-32` grown to 64 px, in patches twice as large; `detail64` makes of it what ships. A 2-core CPU.

python benchmarks/prune.py storybook-32 runs/narrow --style 192 && python train.py grown64

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27: 1 h 1 min with some other work beside it, 44 images/s, compiled in 15 s. By
`python -m dallegan.evaluate --n 2000`: every named attribute right in 99.1 % of `test` and 99.2 % of `heldout` (98.8 and 99.0 % before, at 32 px); object
99.5 %, the others 99.6 % or more; 1,272 of 1,280 combinations; KID 0.121, precision 0.003, recall 0.042: a pattern of dots where real pictures are flat. Shrunk
to 32 px KID 0.018, recall 0.81, as `storybook-32`. The style vector is narrowed because all of it and the refinement are more than the 16 MiB that the weights
have in the package.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=5000,
        batch=32,
        seed=6,
        init_from="runs/narrow",
        data=DataConfig(source="storybook", size=64, objects=1, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(
            width=256, style=192, blocks=2, patch=4, refine=128, attention=(), critic_patch=4, critic_widths=(128, 128, 256), critic_blocks=(0, 2, 1)
        ),
        loss=LossConfig(gamma=(0.8, 0.2), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(5e-4, 1e-5), lr_d=(5e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=32_000, evaluate=16_000, checkpoint=16_000),
    )
