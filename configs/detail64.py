"""The default model that ships, `storybook-64`: `grown64` with a stage of detail in decoder and discriminator. A 2-core CPU.

python benchmarks/prune.py runs/grown64 runs/narrow64 --style 160 && python train.py detail64

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27: 1 h 17 min, 29 images/s, compiled in 18 s. By `python -m dallegan.evaluate
--n 2000`: every named attribute right in 99.1 % of `test` and 98.9 % of `heldout`; object 99.5 and 99.3 %, pose 99.2 and 99.6 %, the others 99.9 % or
more; 1,270 of 1,280 combinations; KID 0.052, precision 0.09, recall 0.32 (0.121, 0.003, 0.042 without the stage). The style vector is narrowed because the
stage, in bfloat16, would be more than the 16 MiB that the weights have in the package. Saved with `dallegan.load("runs/detail64").save(FOLDER)`.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=4200,
        batch=32,
        seed=7,
        init_from="runs/narrow64",
        data=DataConfig(source="storybook", size=64, objects=1, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=20, layers=1),
        model=ModelConfig(
            width=256,
            style=160,
            blocks=2,
            patch=4,
            refine=128,
            detail=(64,),
            attention=(),
            critic_patch=4,
            critic_widths=(128, 128, 256),
            critic_blocks=(0, 2, 1),
        ),
        loss=LossConfig(gamma=(0.4, 0.08), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(5e-4, 1e-5), lr_d=(5e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=16_000, evaluate=16_000, checkpoint=8_000),
    )
