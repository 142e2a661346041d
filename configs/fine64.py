r"""The default model that ships, `storybook-64`: `pairs64` with a second stage of detail, at single pixels. A 2-core CPU.

python train.py fine64
python train.py fine64 --init-from runs/fine64 --workdir runs/fine64b --seed 15 --steps 3200 --loss.gamma 0.06 0.02 --optim.lr 3e-4 1e-5 --optim.lr-d 3e-4 1e-5
python train.py fine64 --init-from runs/fine64b --workdir runs/fine64c --seed 16 --steps 2400 --loss.gamma 0.02 8e-3 --optim.lr 3e-4 1e-5 --optim.lr-d 3e-4 1e-5
python train.py fine64 --init-from runs/fine64c --workdir runs/fine64d --seed 17 --steps 1800 --loss.gamma 0.01 4e-3 --optim.lr 3e-4 1e-5 --optim.lr-d 3e-4 1e-5
python train.py fine64 --init-from runs/fine64d --workdir runs/fine64e --seed 18 --steps 2500 --loss.gamma 8e-3 4e-3 --optim.lr 3e-4 1e-5 \
    --optim.lr-d 3e-4 1e-5 --optim.ema 0.2
python train.py fine64 --init-from runs/fine64e --workdir runs/fine64f --seed 19 --steps 2200 --loss.gamma 6e-3 4e-3 --optim.lr 3e-4 1e-5 \
    --optim.lr-d 3e-4 1e-5 --optim.ema 0.2
python benchmarks/average.py runs/fine64e runs/fine64f --shares 0.4 0.6 --out runs/fine64-average
python train.py fine64 --init-from runs/fine64-average --workdir runs/fine64g --seed 20 --steps 1550 --loss.gamma 5e-3 4e-3 --optim.lr 3e-4 1e-5 \
    --optim.lr-d 3e-4 1e-5 --optim.ema 0.2 --model.shrink 2 1 1
python benchmarks/average.py runs/fine64-average runs/fine64g --shares 0.4 0.6 --out FOLDER

2 cores of an Intel Xeon (AVX-512, GEMM 305 GF/s), jax 0.10.2, 2026-11-27 and 28: 1 h 8 min and 1 h 23 min, 19 to 22 images/s beside some other work (22.7 by
benchmarks/train_speed.py), compiled in 24 s; the third on an AMD EPYC (AVX-512), begun with the second's weights as saved, in bfloat16: 1 h 26 min, 15
images/s. By `python -m dallegan.evaluate --n 2000` after each: right in everything 98.3, 99.4 and 98.9 % of captions of one object (`test`; 98.8, 98.7 and
99.3 % of `heldout`), 88.7, 92.1 and 93.4 % of those of two (88.2, 91.4 and 92.3 %); each object where it belongs in 99.5, 100 and 100 %, each colour on its
own object in 89.7, 93.2 and 94.0 %; 1,271, 1,275 and 1,274 of 1,280 combinations; KID 0.034, 0.024 and 0.018, precision 0.27, 0.48 and 0.54, recall 0.58,
0.73 and 0.77. Of the captions that all models are asked since 2026-11-28, the third: 98.9 and 99.1 %, 92.6 and 93.0 %; KID 0.016, precision 0.57, recall
0.79. The fourth took 1 h, 17 images/s; the average of the last three 98.8 and 99.5 %, 93.5 and 93.5 %; KID 0.013, precision 0.63, recall 0.79,
coverage 0.80. The fifth 1 h 35 min, 14 images/s beside other work; its average with the fourth 99.2 and 99.5 %, 94.5 and 93.4 %;
KID 0.011, precision 0.69, recall 0.84, coverage 0.86. The sixth 1 h 28 min, likewise; its average with the fifth: 99.0 and 99.3 %,
94.6 and 94.4 %; KID 0.010, precision 0.72, recall 0.84, coverage 0.88. The seventh, with wavelet shrinkage, on an AMD EPYC with AVX2: 1 h 25 min, 10 to 11
images/s beside other work (12.2, and 13.3 without shrinkage, by benchmarks/train_speed.py), compiled in 57 s; averaged with that average, which ships: 99.2 and 99.3 %,
94.0 and 92.9 %, binding 94.0 and 93.0 %; 1,277 combinations; KID 0.0064 and 0.0068, precision 0.77 and 0.72, recall 0.87 and 0.82, coverage 0.92 and 0.90.
"""

from dallegan.config import Config, DataConfig, LogConfig, LossConfig, ModelConfig, OptimConfig, TextConfig


def config() -> Config:
    """The run."""
    return Config(
        steps=2400,
        batch=32,
        seed=14,
        init_from="runs/pairs64",
        data=DataConfig(source="storybook", size=64, objects=2, hard_negatives=1.0),
        text=TextConfig(encoder="rnn", length=28, layers=1, prenorm=True),
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
        ),
        loss=LossConfig(gamma=(0.16, 0.04), penalty_share=0.125, contrast=(1.0, 0.0), diversity=1.0),
        optim=OptimConfig(lr=(4e-4, 1e-5), lr_d=(4e-4, 1e-5), muon=25.0),
        log=LogConfig(samples=16_000, evaluate=16_000, checkpoint=8_000),
    )
