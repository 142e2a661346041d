"""Whether images obey their captions, as the judge reads them (storybook only)."""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dallegan.compile import jit_sample
from dallegan.config import Config
from dallegan.data.source import Example
from dallegan.data.storybook import grammar
from dallegan.evaluation import metrics
from dallegan.evaluation.drawing import asked, draw
from dallegan.evaluation.features import by_chunks
from dallegan.evaluation.judge import SIZES_READ, Facts, facts, load_judge, log_likelihood, obeys, read
from dallegan.sampling import Model

COMBINATION, TRIES = frozenset({"0.kind", "0.colour", "place"}), 8  # what is named of one, and images of it at most
CANDIDATES = 100  # captions that R-precision chooses from
Report = dict[str, Any]


class Judged:
    """What the judge makes of pictures, and whether that is what captions say."""

    def __init__(self, judge: Any, images: np.ndarray) -> None:
        self.seen: Facts = by_chunks(functools.partial(jit_sample(read), judge), images, "judge")

    def right(self, said: Facts) -> dict[str, np.ndarray]:
        """`judge.obeys`, bool[N] for each attribute and "all"."""
        return {k: np.asarray(v) for k, v in obeys(self.seen, said).items()}

    def obedience(self, said: Facts) -> Report:
        """`alignment`: the share of pictures with all that their captions say; each attribute alone, where it is said; and `binding`:
        of captions with two colours, the share with each colour on its own object."""
        right = self.right(said)
        colours, count = np.asarray(said.things["colour"]), np.asarray(said.count)
        two = np.stack([count == 1, colours.min(1) >= 0, colours[:, 0] != colours[:, 1]]).all(0)
        asked = {k: (np.asarray(v) >= 0).any(1) for k, v in said.things.items()} | {"place": said.place >= 0, "side": count == 1}
        report = {"alignment": share(right["all"])} | {k: share(right[k], asked[k]) for k in asked} | {"count": share(right["count"])}
        return report | {"binding": share(right["colour"] & right["kind"], two)}

    def r_precision(self, said: Facts, seed: int = 0) -> float:
        """Of each picture, among its own caption and 99 others'."""
        n = len(said.count)
        others = np.random.default_rng(seed).integers(1, n, (n, min(CANDIDATES, n) - 1)) + np.arange(n)[:, None]
        candidates = np.concatenate([np.arange(n)[:, None], others % n], 1)
        each = jax.vmap(lambda column: log_likelihood(self.seen, jax.tree.map(lambda x: jnp.asarray(x)[column], said)), 1, 1)
        return float(metrics.r_precision(each(candidates)))


def share(right: Any, of: Any = None) -> float | None:
    """The mean over the rows asked of; None where there are none."""
    rows = right if of is None else right[of]
    return float(np.mean(rows)) if len(rows) else None


def said_by(examples: Iterable[Example]) -> Facts:
    """What the captions of storybook examples say."""
    scenes, captions = zip(*(e.truth for e in examples), strict=True)
    return facts(scenes, captions)


def combinations(model: Model, judge: Any, seed: int) -> Report:
    """Of all object x colour x place combinations (a tenth of them never seen in training), how many come out right, asked for once, and in one of `TRIES`."""

    def ask(kind: str, colour: str, place: str) -> tuple[grammar.Scene, grammar.Caption]:
        scene = grammar.Scene(place, (grammar.Thing(kind, colour, "big", "standing" if kind in grammar.ANIMALS else None),))
        return scene, grammar.Caption(f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind} {grammar.EN_PLACE[place]}", "en", COMBINATION)

    def missed(pairs: list[Any], tries: int) -> list[Any]:
        images = draw(model, [caption.text for _, caption in pairs], tries, seed, "combinations")
        right: Any = Judged(judge, images).right(facts(*zip(*[pair for pair in pairs for _ in range(tries)], strict=True)))["all"]
        return [pair for i, pair in enumerate(pairs) if not right[i * tries : (i + 1) * tries].any()]

    all_of_them = list(itertools.starmap(ask, itertools.product(grammar.OBJECTS, grammar.COLOURS, grammar.PLACES)))
    once, n = missed(all_of_them, 1), len(all_of_them)
    return {"right": n - len(once), "right_in_tries": n - len(missed(once, TRIES) if once else once), "tries": TRIES, "of": n}


def make_quick(config: Config, n: int = 256) -> Callable[[Model], Report] | None:
    """What training asks of its model now and then, for n captions of `test`: `alignment`, and that of kind, colour, size and place
    alone. None where the judge cannot read the pictures or `log.evaluate` is 0."""
    if config.data.source != "storybook" or config.data.size not in SIZES_READ or not config.log.evaluate:
        return None
    judge, source = load_judge(), asked(config, "test")
    rng = np.random.default_rng(0)
    examples = [source.example(i, rng) for i in range(n)]
    captions, said = [e.caption for e in examples], said_by(examples)

    def quick(model: Model) -> Report:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captions too long for the model are cut in training too
            images = model.sample(captions)
        found = Judged(judge, images).obedience(said)
        return {"alignment": found["alignment"]} | {f"alignment_{name}": found[name] for name in ("kind", "colour", "size", "place")}

    return quick
