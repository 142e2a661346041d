"""Counts which runs survive, and what each part is worth.

    python benchmarks/stability.py [--seeds N] [--steps N] [--cases NAME...]     survival: few steps, narrow
    python benchmarks/stability.py --whole --seeds 2 --steps 640 [--cases ...]   ablation: the preset itself

Short runs of each option over seeds, and the 1,000 modes of stacked digits. Each run adds a line to
benchmarks/results/stability.jsonl; runs that have a line there are skipped.
"""

import dataclasses
import json
import pathlib
import sys
import tempfile
import time

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import dallegan
from dallegan.config import Config, DataConfig, LogConfig, load_preset
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.evaluation.judge import load_judge
from dallegan.evaluation.obedience import caption_facts, obedience, read_images
from dallegan.evaluation.quick import diversity_within
from dallegan.io.cli import parse, run
from dallegan.loop import train
from dallegan.run.log import Diverged
from dallegan.run.machine import about, restart_with_huge_pages

RESULTS = pathlib.Path(__file__).parent / "results" / "stability.jsonl"
CASES: dict[str, dict] = {
    "rpgan": {},
    "hinge": {"loss__adversarial": "hinge"},
    "nonsaturating": {"loss__adversarial": "nonsaturating"},
    "no penalty": {"loss__gamma": (0.0, 0.0)},
    "transformer": {"text__encoder": "transformer"},
    "untied": {"model__tied": False},
    "diversity": {"loss__diversity": 2.0},
    "no matching": {"loss__matching": 0.0},
    "dcgan": {},
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Count what goes wrong."""

    seeds: int = 10
    steps: int = 400  # of 32 pictures; schedules shrink with them
    whole: bool = False  # the preset's own generator, and 1,000 captions of `test` instead of 256
    cases: tuple[str, ...] = (*CASES, "digits")
    digit_steps: int = 1500


def changed(config: Config, **changes: object) -> Config:
    """A configuration with `section__field=value` changes."""
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config = dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )
    return config


def make_config(preset: str, seed: int, steps: int, workdir: str, whole: bool) -> Config:
    """A preset; unless whole, at a size whose step takes a tenth of a second on two cores."""
    config = dataclasses.replace(
        load_preset(preset),
        steps=steps,
        batch=32,
        seed=seed,
        workdir=workdir,
        log=LogConfig(3200, 10**9, 0, 10**9),
    )
    return config if preset == "dcgan" or whole else changed(config, model__width=128, model__blocks=1)


def survives(config: Config, count: int) -> dict[str, object]:
    """Trains, and says what became of it, by `count` captions."""
    try:
        train(config)
    except Diverged:
        return {"diverged": True}
    model, source = dallegan.load(config.workdir), make_source(config, "test")
    rng = np.random.default_rng(0)
    examples = [source.example(i, rng) for i in range(count)]
    one = model.sample([e.caption for e in examples])
    many = model.sample([e.caption for e in examples[:32]], n=8).reshape(32, 8, -1).astype(np.float32)
    lines = [
        json.loads(line) for line in (pathlib.Path(config.workdir) / "metrics.jsonl").read_text().splitlines()
    ]
    within, across = float(many.std(1).mean()), float(one.reshape(count, -1).astype(np.float32).std(0).mean())
    obeyed = obedience(read_images(load_judge(), one), caption_facts(examples))
    found = {
        "skipped": lines[-1]["skipped"],
        "images_per_second": round(float(np.median([line["images_per_second"] for line in lines])), 1),
    }
    return (
        {"diverged": False}
        | found
        | {"within": round(within, 2), "across": round(across, 2)}
        | {"diversity": round(diversity_within(source)(model)["diversity"], 3)}
        | {k: obeyed[k] for k in ("alignment", "kind", "pose")}
    )


def digits(config: Config, pictures: int = 8000, drawn: int = 25_600) -> dict[str, object]:
    """Counts the modes of stacked digits (arXiv 1611.02163, §3.3.1) among the images drawn.

    Three digits of 8x8 as the three colours make 1,000 modes, with one caption for all. Returns the modes
    found and their KL divergence from evenness, read by a support vector machine.
    """
    data = load_digits()
    reader = SVC(gamma=0.001).fit(data.data, data.target)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for i, rows in enumerate(rng.integers(0, len(data.images), (pictures, 3))):
            stacked = np.round(data.images[rows].transpose(1, 2, 0) * 255 / 16).astype(np.uint8)
            Image.fromarray(stacked).resize((config.data.size,) * 2, Image.Resampling.NEAREST).save(
                f"{folder}/{i}.png"
            )
            pathlib.Path(f"{folder}/{i}.txt").write_text("three digits")
        train(dataclasses.replace(config, data=DataConfig(source=f"folder:{folder}", size=config.data.size)))
        images = np.concatenate(list(dallegan.load(config.workdir).stream(["three digits"], n=drawn)))
    pixels = (
        images.reshape(drawn, 8, config.data.size // 8, 8, config.data.size // 8, 3).mean((2, 4)) * 16 / 255
    )
    read = [reader.predict(pixels[..., c].reshape(drawn, 64)) for c in range(3)]
    counts = np.bincount(100 * read[0] + 10 * read[1] + read[2], minlength=1000) / drawn
    seen = counts[counts > 0]
    return {
        "modes": int(np.sum(counts > 0)),
        "of": 1000,
        "kl": round(float(np.sum(seen * np.log(seen * 1000))), 3),
    }


def main() -> None:
    """Runs what has not been run."""
    jax.config.update(
        "jax_compilation_cache_dir", str(pathlib.Path.home() / ".cache" / "dallegan" / "stability")
    )  # the seeds of a case share their programs
    args = parse(Args, "stability.py")
    if unknown := [case for case in args.cases if case not in (*CASES, "digits")]:
        raise UserError(f"--cases {unknown[0]}: choose from {', '.join((*CASES, 'digits'))}")
    done = (
        {
            (r["case"], r["seed"], r["steps"], r.get("whole", False))
            for r in map(json.loads, RESULTS.read_text().splitlines())
        }
        if RESULTS.exists()
        else set()
    )
    for seed in range(args.seeds):
        for case in args.cases:
            steps = args.digit_steps if case == "digits" else args.steps
            if (case, seed, steps, args.whole) in done or (case == "digits" and (args.whole or seed > 1)):
                continue
            with tempfile.TemporaryDirectory() as workdir:
                start = time.perf_counter()
                config = make_config(
                    "dcgan" if case == "dcgan" else "quickstart", seed, steps, f"{workdir}/run", args.whole
                )
                config = changed(config, **CASES.get(case, {}))
                found = digits(config) if case == "digits" else survives(config, 1000 if args.whole else 256)
            row = {
                "case": case,
                "seed": seed,
                "steps": steps,
                "whole": args.whole,
                "seconds": round(time.perf_counter() - start),
            } | found
            print(row, file=sys.stderr, flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row | {"about": about()}) + "\n")


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
