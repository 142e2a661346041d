"""Trains the judge on `train` renders of 1 and 2 objects, at 32 and 64 px, and measures it on `test` and `heldout`.

python benchmarks/train_judge.py [--steps N] [--scenes N] > benchmarks/results/judge.json
python benchmarks/train_judge.py --start dallegan/assets/judge.safetensors --seed 3 --pairs 0.8 --steps 4000 --lr 7e-4 > benchmarks/results/judge.json

Writes dallegan/assets/judge.safetensors. Both lines, one after the other, made what is shipped.
"""

import concurrent.futures
import dataclasses
import functools
import json
import multiprocessing
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from dallegan.data.storybook.grammar import PLACES
from dallegan.data.storybook.scenes import Storybook
from dallegan.evaluation.judge import READABLE_SIZES, VALUES, WEIGHTS, Facts, Judge, classify, encode_facts, load_judge
from dallegan.io.cli import parse, run
from dallegan.io.weights import write_weights
from dallegan.models.layers import to_float
from dallegan.parallel import fast_options
from dallegan.run.processes import about, restart_with_huge_pages


@dataclasses.dataclass(frozen=True)
class Args:
    """Train and measure the judge."""

    steps: int = 8000  # of a batch at 32 and one at 64 px
    batch: int = 64
    pairs: float = 0.5  # share of a batch with one or two objects; the others have one
    start: pathlib.Path | None = None  # weights to go on from
    scenes: int = 120_000  # rendered before training, of each size and number of objects
    lr: float = 1e-3  # falls to a hundredth along half a cosine
    noise: float = 0.1  # most deviation of the noise laid over a picture, in [-1, 1] units
    seed: int = 1
    measured: int = 5000  # renders of each split, size and number of objects


def renders(source: Storybook, start: int, count: int) -> tuple[np.ndarray, Facts]:
    """Pictures uint8[count, S, S, 3] and their facts."""
    examples = [source.example(i) for i in range(start, start + count)]
    return np.stack([e.image for e in examples]), encode_facts([e.truth[0] for e in examples])


def render_all(pool: concurrent.futures.Executor, source: Storybook, count: int) -> tuple[np.ndarray, Facts]:
    """`renders`, by all processes."""
    step = 500
    work = pool.map(functools.partial(renders, source, count=step), range(0, count, step))
    parts = list(tqdm(work, total=count // step, desc=f"{source.split} {source.size} px"))
    return np.concatenate([p[0] for p in parts]), jax.tree.map(lambda *x: np.concatenate(x), *(p[1] for p in parts))


def loss(params, image: jax.Array, truth: Facts) -> jax.Array:
    """Sum over the attributes of the mean cross entropy."""
    out = Judge().apply(params, image)
    terms = [(out.place, truth.place), (out.count, truth.count), *((out.things[k], truth.things[k]) for k in VALUES)]
    return sum(-jnp.mean(jnp.sum(jax.nn.one_hot(wanted, logits.shape[-1]) * logits, -1)) for logits, wanted in terms)  # one_hot(-1) is 0


def flipped(image: jax.Array, truth: Facts, flip: jax.Array) -> tuple[jax.Array, Facts]:
    """Mirrors the pictures that `flip` bool[B] names: left is right then."""
    turn = lambda x, axis: jnp.where(flip.reshape(-1, *[1] * (x.ndim - 1)), jnp.flip(x, axis), x)
    return turn(image, 2), truth.replace(things={k: turn(v, 1) for k, v in truth.things.items()})


def train(args: Args, data: dict[int, list[tuple[np.ndarray, Facts]]]):
    """The trained parameters; `data` by size holds one set a number of objects."""
    params = load_judge(args.start) if args.start else Judge().init(jax.random.key(args.seed), jnp.zeros((1, 64, 64, 3)))
    pairs = round(args.pairs * args.batch)
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0, args.lr, 200, args.steps, args.lr / 100))
    state = params, adam.init(params)

    def step(state, images, truths, key):
        params, opt = state

        def total(params):
            value = 0.0
            for k, (image, truth) in enumerate(zip(images, truths, strict=True)):
                a, b, c = jax.random.split(jax.random.fold_in(key, k), 3)
                x, truth = flipped(to_float(image), truth, jax.random.bernoulli(a, shape=image.shape[:1]))
                deviation = args.noise * jax.random.uniform(b, (image.shape[0], 1, 1, 1))
                value += loss(params, x + deviation * jax.random.normal(c, x.shape), truth)
            return value / len(images)

        value, grads = jax.value_and_grad(total)(params)
        updates, opt = adam.update(grads, opt)
        return (optax.apply_updates(params, updates), opt), value

    def batch(i: int):
        rng = np.random.default_rng((args.seed, i))
        images, truths = [], []
        for sets in data.values():
            rows = [rng.integers(0, len(images_), count) for (images_, _), count in zip(sets, (args.batch - pairs, pairs), strict=True)]
            images.append(np.concatenate([images_[r] for (images_, _), r in zip(sets, rows, strict=True)]))
            truths.append(jax.tree.map(lambda *x: np.concatenate(x), *(jax.tree.map(lambda x, r=r: x[r], t) for (_, t), r in zip(sets, rows, strict=True))))
        return images, truths

    compiled = jax.jit(step, donate_argnums=0, compiler_options=fast_options()).lower(state, *batch(0), jax.random.key(0)).compile()
    values = []
    with concurrent.futures.ThreadPoolExecutor(1) as ahead:
        upcoming = ahead.submit(batch, 0)
        for i in (bar := tqdm(range(args.steps), unit="step")):
            now, upcoming = upcoming.result(), ahead.submit(batch, i + 1)
            state, value = compiled(state, *now, jax.random.fold_in(jax.random.key(args.seed), i))
            values.append(value)
            if i % 100 == 99:
                bar.set_postfix(loss=f"{np.mean([float(v) for v in values]):.4f}", refresh=False)
                values = []
    return state[0]


def measure(params, images: np.ndarray, truth: Facts) -> tuple[dict[str, float], dict[str, list[list[int]]]]:
    """Share read rightly of each attribute, and confusions (true value by read value) of those of the objects and the place."""
    parts = [classify(params, images[i : i + 250]) for i in range(0, len(images), 250)]
    seen = jax.tree.map(lambda *x: np.argmax(np.concatenate(x), -1), *parts)
    pairs = {"place": (truth.place, seen.place)} | {k: (truth.things[k], seen.things[k]) for k in VALUES}
    shares, tables = {"count": float(np.mean(truth.count == seen.count))}, {}
    right = truth.count == seen.count
    for name, (wanted, got) in pairs.items():
        said = wanted >= 0
        shares[name] = float(np.mean((wanted == got)[said]))
        right = right & ((wanted == got) | ~said).reshape(len(images), -1).all(1)
        n = len(PLACES) if name == "place" else len(VALUES[name])
        tables[name] = np.bincount(n * wanted[said] + got[said], minlength=n * n).reshape(n, n).tolist()
    return shares | {"all": float(np.mean(right))}, tables


def main() -> None:
    """Trains, writes the weights, reads them back, measures, prints JSON."""
    args = parse(Args, "train_judge.py")
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        data = {size: [render_all(pool, Storybook(size, "train", args.seed, n), args.scenes) for n in (1, 2)] for size in READABLE_SIZES}
        start = time.perf_counter()
        params = train(args, data)
        seconds = time.perf_counter() - start
        write_weights(WEIGHTS, params)
        params = load_judge()
        result, tables = {}, {}
        for split in ("test", "heldout"):
            for size in READABLE_SIZES:
                for n in (1, 2):
                    name = f"{split} {size} px, {'1 object' if n == 1 else '1 or 2 objects'}"
                    result[name], tables[name] = measure(params, *render_all(pool, Storybook(size, split, args.seed + 1, n), args.measured))
    values = VALUES | {"place": PLACES}
    size = {"training_seconds_of_this_command": round(seconds), "parameters": sum(x.size for x in jax.tree.leaves(params)), "bytes": WEIGHTS.stat().st_size}
    print(json.dumps(about() | size | {"accuracy": result, "values": values, "confusion (rows: true)": tables}))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(run(main))
