"""Measures golden values: the first steps of presets and images of the shipped model, to the last bit.

    python benchmarks/golden.py > benchmarks/results/golden.json    measures
    python benchmarks/golden.py --check [CASE...]                   compares; exit code 1 if different

Run it before and after a change that should move no number. Bits depend on the processor and on XLA's
version: compare on one machine.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np

import dallegan
from dallegan.config import load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.optim import make_optimizer
from dallegan.parallel import make_runner
from dallegan.run.machine import about
from dallegan.sampling import make_gan

FILE = pathlib.Path(__file__).parent / "results" / "golden.json"
STEPS = 3
# preset, devices, strategy, fsdp, batch (None: the preset's)
CASES = {
    "quickstart": ("quickstart", 1, "jit", 1, None),
    "pairs64": ("pairs64", 1, "jit", 1, None),
    "dcgan": ("dcgan", 1, "jit", 1, None),
    "storybook32, 8 devices, jit": ("storybook32", 8, "jit", 1, 32),
    "storybook32, 8 devices, pmap": ("storybook32", 8, "pmap", 1, 32),
    "storybook32, 8 devices, fsdp 4": ("storybook32", 8, "jit", 4, 32),
    "storybook64, 8 devices, jit": ("storybook64", 8, "jit", 1, 16),
    "storybook64, 8 devices, pmap": ("storybook64", 8, "pmap", 1, 16),
    "storybook64, 8 devices, fsdp 4": ("storybook64", 8, "jit", 4, 16),
}
PROMPTS = [
    "一只棕色的大熊站在雪地里",
    "a big brown bear standing in the snow",
    "a small red car in the desert",
    "海面上有一艘白色的大船",
    "a big yellow flower on the grass",
    "夜空下坐着一只黑色的小猫",
    "a small white rabbit jumping in the forest",
    "城市里有一把紫色的大雨伞",
    "a red cat to the left of a blue house in the snow",
    "沙滩上，一只黄色的大狗在一只黑色的小兔子的右边",
    "a pink elephant",
    "一棵树",
    "there is a green fish on the sea",
    "an orange balloon at night",
    "雪地里有一个白色的雪人",
    "a brown horse jumping on the grass",
]


def digest(tree) -> str:
    """sha256 of the arrays of a tree, whatever their names and order."""
    return hashlib.sha256(
        "".join(
            sorted(hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in jax.tree.leaves(tree))
        ).encode()
    ).hexdigest()


def steps(preset: str, strategy: str, fsdp: int, batch: int | None) -> dict:
    """Losses and gradient norms of the first steps, and the state after them."""
    config = load_preset(preset)
    parallel = dataclasses.replace(config.parallel, strategy=strategy, fsdp=fsdp)
    config = dataclasses.replace(config, init_from="", batch=batch or config.batch, parallel=parallel)
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    gan = make_gan(config, tokenizer.size)
    runner = make_runner(gan, make_optimizer(gan, config.optim, config.steps), config)
    state, batches, lines = (
        runner.init(),
        make_batches(make_dataset(source, tokenizer, config), config, 0),
        [],
    )
    for _ in range(STEPS):
        state, metrics = runner.step(state, runner.put(next(batches)))
        lines.append(
            {name: float(metrics[name]) for name in ("d_loss", "g_loss", "r1", "grad_norm_d", "grad_norm_g")}
        )
    state = runner.view(state)
    return {
        "steps": lines,
        "params": digest(state.params),
        "ema": digest(state.ema),
        "opt": digest(state.opt),
    }


def measure(case: str) -> dict:
    """One case, in this process."""
    if case == "storybook-64":
        images = dallegan.load("storybook-64").sample(PROMPTS, n=1, seed=0)
        return {
            "pixels": [hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in images],
            "means": [round(float(x.mean()), 3) for x in images],
        }
    preset, _, strategy, fsdp, batch = CASES[case]
    return steps(preset, strategy, fsdp, batch)


def in_process(case: str) -> dict:
    """One case in a process of its own, with as many devices as it wants."""
    devices = CASES[case][1] if case in CASES else 1
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return json.loads(
        subprocess.run(
            [sys.executable, __file__, "--case", case], env=env, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    )


def main() -> int:
    """Measures or compares."""
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(sys.argv[2])))
        return 0
    chosen = [arg for arg in sys.argv[1:] if not arg.startswith("--")] or [*CASES, "storybook-64"]
    found = {case: in_process(case) for case in chosen}
    if "--check" not in sys.argv:
        print(json.dumps(about() | {"golden": found}, indent=1))
        return 0
    wanted, differ = json.loads(FILE.read_text())["golden"], 0
    for case, values in found.items():
        same = values == wanted[case]
        differ += not same
        print(f"{case}: {'equal' if same else 'DIFFERS'}")
        for name in () if same else values:
            if values[name] != wanted[case][name]:
                print(f"  {name}:\n    was {wanted[case][name]}\n    is  {values[name]}")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
