"""Trains the storybook's judge on `train` scenes of one and two objects, at 32 and 64 px, and measures it.

python recipes/train_judge.py > benchmarks/results/judge.json
python recipes/train_judge.py --start dallegan/assets/judge.safetensors --seed 3 --pairs 0.8 \\
    --steps 4000 --lr 7e-4 > benchmarks/results/judge.json

Writes dallegan/assets/judge.safetensors and prints the accuracy on `test` and `heldout` as JSON. Both
commands, one after the other, made the judge that ships.
"""

import concurrent.futures
import functools
import json
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dallegan.compile import TRAIN, options
from dallegan.data.storybook.grammar import PLACES
from dallegan.data.storybook.scenes import Storybook
from dallegan.evaluation.judge import (
    READABLE_SIZES,
    VALUES,
    WEIGHTS,
    Facts,
    Judge,
    Params,
    classify,
    encode_facts,
    load_judge,
)
from dallegan.io.cli import parse, run
from dallegan.io.weights import write_weights
from dallegan.models.layers import to_float
from dallegan.run.machine import about, restart_with_huge_pages

RENDERS = 500  # images that a worker renders at once
CHUNK = 250  # images that are classified at once

Labelled = tuple[np.ndarray, Facts]  # images uint8[N, S, S, 3] and their facts
Sets = dict[int, list[Labelled]]  # by image size: scenes of one object, scenes of one or two


@dataclass(frozen=True)
class Args:
    """Train and measure the judge."""

    steps: int = 8000  # steps of a batch at 32 px and one at 64 px
    batch: int = 64  # images of each size a step
    pairs: float = 0.5  # fraction of a batch from scenes of one or two objects; the rest has one
    start: pathlib.Path | None = None  # weights to train on from; default: from scratch
    scenes: int = 120_000  # images of each size and number of objects, rendered before training
    lr: float = 1e-3  # learning rate at the start; it falls to a hundredth along half a cosine
    noise: float = 0.1  # greatest deviation of the noise added to an image, in [-1, 1] units
    seed: int = 1  # seed of scenes, weights and batches
    measured: int = 5000  # images measured, of each split, size and number of objects


def render(source: Storybook, start: int, count: int) -> Labelled:
    """Returns the images and facts of `count` scenes from index `start` on."""
    examples = [source.example(i) for i in range(start, start + count)]
    return np.stack([e.image for e in examples]), encode_facts([e.truth[0] for e in examples])


def render_all(pool: concurrent.futures.Executor, source: Storybook, count: int) -> Labelled:
    """Returns the images and facts of the first `count` scenes, rendered by all workers of the pool."""
    work = pool.map(functools.partial(render, source, count=RENDERS), range(0, count, RENDERS))
    label = f"{source.split} {source.size} px"
    images, facts = zip(*tqdm(work, total=count // RENDERS, desc=label), strict=True)
    return np.concatenate(images), jax.tree.map(lambda *x: np.concatenate(x), *facts)


def make_batch(data: Sets, args: Args, step: int) -> tuple[list[np.ndarray], list[Facts]]:
    """Returns random images and facts of step `step`, one batch a size."""
    rng, pairs = np.random.default_rng((args.seed, step)), round(args.pairs * args.batch)
    images, facts = [], []
    for sets in data.values():
        rows = [
            rng.integers(0, len(x), n) for (x, _), n in zip(sets, (args.batch - pairs, pairs), strict=True)
        ]
        chosen = [jax.tree.map(lambda x, r=r: x[r], one) for one, r in zip(sets, rows, strict=True)]
        image, fact = jax.tree.map(lambda *x: np.concatenate(x), *chosen)
        images.append(image)
        facts.append(fact)
    return images, facts


def cross_entropy(params: Params, image: jax.Array, truth: Facts) -> jax.Array:
    """Returns the sum over the attributes of the mean cross entropy."""
    out = Judge().apply(params, image)
    assert isinstance(out, Facts)
    pairs = [(out.place, truth.place), (out.count, truth.count)]
    pairs += [(out.things[name], truth.things[name]) for name in VALUES]
    one_hot = lambda index, logits: jax.nn.one_hot(index, logits.shape[-1])  # zeros for -1, not named
    terms = [-jnp.mean(jnp.sum(one_hot(index, logits) * logits, -1)) for logits, index in pairs]
    return sum(terms, jnp.zeros(()))


def mirror(image: jax.Array, truth: Facts, chosen_B: jax.Array) -> tuple[jax.Array, Facts]:
    """Mirrors the chosen images, in which left then becomes right."""

    def flip(x: jax.Array, axis: int) -> jax.Array:
        return jnp.where(chosen_B.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis), x)

    return flip(image, 2), truth.replace(things={name: flip(x, 1) for name, x in truth.things.items()})


def make_step(args: Args, adam: optax.GradientTransformation) -> Callable[..., tuple[Any, jax.Array]]:
    """Returns the train step, ((params, Adam's state), images, truths, key) -> (new state, loss)."""

    def loss(params: Params, images: list[jax.Array], truths: list[Facts], key: jax.Array) -> jax.Array:
        total = jnp.zeros(())
        for k, (image, truth) in enumerate(zip(images, truths, strict=True)):
            flip, deviation, noise = jax.random.split(jax.random.fold_in(key, k), 3)
            chosen = jax.random.bernoulli(flip, shape=image.shape[:1])
            x, truth = mirror(to_float(image), truth, chosen)
            scale = args.noise * jax.random.uniform(deviation, (image.shape[0], 1, 1, 1))
            total += cross_entropy(params, x + scale * jax.random.normal(noise, x.shape), truth)
        return total / len(images)

    def step(state: Any, images: list[jax.Array], truths: list[Facts], key: jax.Array) -> Any:
        params, opt = state
        value, grads = jax.value_and_grad(loss)(params, images, truths, key)
        updates, opt = adam.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), value

    return step


def train(args: Args, data: Sets) -> Params:
    """Returns the trained parameters."""
    key = jax.random.key(args.seed)
    if args.start:
        params = load_judge(args.start)
    else:  # without the marks of hidden kernels, which are for Muon
        params = {"params": Judge().init(key, jnp.zeros((1, 64, 64, 3)))["params"]}
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0, args.lr, 200, args.steps, args.lr / 100))
    state = params, adam.init(params)
    batch = functools.partial(make_batch, data, args)
    step = jax.jit(make_step(args, adam), donate_argnums=0, compiler_options=options(TRAIN))
    compiled = step.lower(state, *batch(0), jax.random.key(0)).compile()
    losses: list[jax.Array] = []
    with concurrent.futures.ThreadPoolExecutor(1) as loader:
        upcoming = loader.submit(batch, 0)
        for i in (bar := tqdm(range(args.steps), unit="step")):
            now, upcoming = upcoming.result(), loader.submit(batch, i + 1)
            state, value = compiled(state, *now, jax.random.fold_in(key, i))
            losses.append(value)
            if len(losses) == 100:
                bar.set_postfix(loss=f"{np.mean([float(x) for x in losses]):.4f}", refresh=False)
                losses.clear()
    return state[0]


def measure(params: Params, images: np.ndarray, truth: Facts) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns the accuracy of each attribute and of all together, and confusions by true and read value."""
    chunks = [classify(params, images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    read = jax.tree.map(lambda *x: np.argmax(np.concatenate(x), -1), *chunks)
    pairs = {"place": (truth.place, read.place)}
    pairs |= {name: (truth.things[name], read.things[name]) for name in VALUES}
    correct = truth.count == read.count
    accuracy, confusions = {"count": float(np.mean(correct))}, {}
    for name, (wanted, got) in pairs.items():
        known = wanted >= 0
        accuracy[name] = float(np.mean((wanted == got)[known]))
        correct = correct & ((wanted == got) | ~known).reshape(len(images), -1).all(1)
        n = len(PLACES) if name == "place" else len(VALUES[name])
        confusions[name] = np.bincount(n * wanted[known] + got[known], minlength=n * n).reshape(n, n).tolist()
    return accuracy | {"all": float(np.mean(correct))}, confusions


def main() -> None:
    """Parses the command line, trains, writes the weights, reads them back, measures, prints JSON."""
    args = parse(Args, "recipes/train_judge.py")
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        data = {
            size: [render_all(pool, Storybook(size, "train", args.seed, n), args.scenes) for n in (1, 2)]
            for size in READABLE_SIZES
        }
        start = time.perf_counter()
        params = train(args, data)
        seconds = round(time.perf_counter() - start)
        write_weights(WEIGHTS, params)
        params = load_judge()
        accuracy, confusions = {}, {}
        for split in ("test", "heldout"):
            for size in READABLE_SIZES:
                for n in (1, 2):
                    name = f"{split} {size} px, {'1 object' if n == 1 else '1 or 2 objects'}"
                    measured = render_all(pool, Storybook(size, split, args.seed + 1, n), args.measured)
                    accuracy[name], confusions[name] = measure(params, *measured)
    count = sum(x.size for x in jax.tree.leaves(params))
    result = {
        "training_seconds_of_this_command": seconds,
        "parameters": count,
        "bytes": WEIGHTS.stat().st_size,
    }
    result |= {"accuracy": accuracy, "values": VALUES | {"place": PLACES}}
    print(json.dumps(about() | result | {"confusion (rows: true)": confusions}))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
