"""`storybook`: procedural illustrated scenes with bilingual captions; a pure function of (seed, index), no download.

Splits: `train`; `test`, fresh draws of combinations seen in training; `heldout`, whose object x colour x place triples (a
tenth of all) never occur in `train`.
"""

import dataclasses
import random
from typing import ClassVar

import numpy as np

from dallegan.data.source import Example
from dallegan.data.storybook import art, grammar
from dallegan.data.storybook.grammar import ANIMALS, COLOURS, OBJECTS, PLACES, POSES, SIDES, SIZES, Caption, Scene, Thing
from dallegan.data.storybook.sprites import sprite
from dallegan.errors import UserError

SPLITS = ("train", "test", "heldout")
RGB: dict[str, art.Rgb] = {
    "red": (216, 44, 44), "orange": (242, 136, 30), "yellow": (248, 216, 48), "green": (64, 168, 70), "blue": (52, 96, 214),
    "purple": (138, 66, 182), "pink": (246, 142, 184), "brown": (136, 86, 50), "black": (52, 50, 56), "white": (244, 244, 244),
}  # fmt: skip
HEIGHT = {"big": 0.66, "small": 0.42}  # of an object, in picture heights


def is_heldout(kind: str, colour: str, place: str) -> bool:
    """Whether a triple is kept out of `train`: one colour of ten for each (object, place)."""
    return (OBJECTS.index(kind) + COLOURS.index(colour) + 3 * PLACES.index(place)) % 10 == 7


def belongs(scene: Scene, split: str) -> bool:
    """Whether all triples of a scene are of the split."""
    return all(is_heldout(t.kind, t.colour, scene.place) == (split == "heldout") for t in scene.things)


def draw_scene(rng: random.Random, split: str, objects: int) -> Scene:
    """A scene of 1 to `objects` objects whose triples belong to the split."""
    place = rng.choice(PLACES)
    count = rng.choice(range(1, objects + 1))
    things: list[Thing] = []
    while len(things) < count:
        kind, colour = rng.choice(OBJECTS), rng.choice(COLOURS)
        if is_heldout(kind, colour, place) == (split == "heldout") and all(kind != t.kind for t in things):
            things.append(Thing(kind, colour, rng.choice(SIZES), rng.choice(POSES) if kind in ANIMALS else None))
    return Scene(place, tuple(things), rng.choice(SIDES) if len(things) == 2 else None)


def names_triples(scene: Scene, said: Caption) -> bool:
    """Whether a caption names place, and kind and colour of each object: only then it asks for what `heldout` keeps apart."""
    return {"place", *(f"{i}.{field}" for i in range(len(scene.things)) for field in ("kind", "colour"))} <= said.mentions


def redraw(scene: Scene, said: Caption, split: str, rng: random.Random) -> Scene:
    """Another scene of the split that the caption is true of: what it does not name is drawn anew."""
    choose = lambda name, old, values: old if name in said.mentions else rng.choice(values)
    while True:
        things = tuple(
            Thing(
                t.kind, choose(f"{i}.colour", t.colour, COLOURS), choose(f"{i}.size", t.size, SIZES),
                t.pose and choose(f"{i}.pose", t.pose, POSES),
            )
            for i, t in enumerate(scene.things)
        )  # fmt: skip
        other = Scene(choose("place", scene.place, PLACES), things, scene.side)
        if belongs(other, split):
            return other


def render(scene: Scene, size: int, seed: int) -> np.ndarray:
    """uint8[size, size, 3]: the picture of a scene; the seed draws position, shade, horizon, weather and which way things face."""
    rng = random.Random(seed)
    canvas, horizon, shadow = art.landscape(scene.place, size, rng)
    pair = len(scene.things) == 2
    for i, thing in enumerate(scene.things):
        height = HEIGHT[thing.size] * (0.92 + 0.16 * rng.random()) * (0.72 if pair else 1.0)
        if pair:
            left = (scene.side == "left") == (i == 0)
            x = (0.26 if left else 0.74) + 0.08 * (rng.random() - 0.5)
        else:
            room = 0.5 - 0.36 * height / HEIGHT["big"]
            x = 0.5 + 2 * room * (rng.random() - 0.5)
        low = max(horizon + 0.12, 0.9 - 0.25 * (thing.size == "small"))
        ground = low + (0.96 - low) * rng.random()
        shape = sprite(thing.kind, thing.pose)
        canvas.ellipse(x, ground - 0.005, height * 0.42, height * 0.07, shadow)
        colour = art.mix(art.tint(RGB[thing.colour], 0.92 + 0.16 * rng.random()), (128, 128, 128), 0.06 * rng.random())
        canvas.sprite(shape, x, ground, height, colour, flip=rng.random() < 0.5, turn=0.1 * (rng.random() - 0.5))
    return canvas.finish()


def negative(scene: Scene, said: Caption, seed: int, split: str, objects: int, hard: float) -> tuple[Scene, Caption]:
    """A caption false of the scene, and the scene it is true of.

    With probability `hard` the same sentence with one named attribute swapped: the kind, which is the hardest to tell, as often as
    all others; and of two objects twice as often as these what the words alone do not tell, which is where and of which colour, for
    that is learned last (benchmarks/LOG.md). Else another scene's.
    """
    rng = random.Random(seed ^ 0x9E3779B9)  # independent of what `render` draws from the seed
    if rng.random() >= hard:
        other = draw_scene(rng, split, objects)
        text = grammar.caption(other, rng.getrandbits(48), said.language)
        if is_false(text, other, scene):
            return other, text
    names = said.mentions | ({"colours"} if {"0.colour", "1.colour"} <= said.mentions and exchangeable(scene, split) else frozenset())
    kinds, relations = sorted(a for a in names if a.endswith("kind")), [a for a in ("side", "colours") if a in names]
    rest = sorted(names - {*kinds, *relations})
    groups = [group for group in (kinds, rest, *4 * [relations]) if group]
    attribute = rng.choice(groups[int(rng.random() * len(groups))])
    other = swap(scene, attribute, rng)
    while split != "heldout" and not belongs(other, split):
        other = swap(scene, attribute, rng)
    return other, grammar.caption(other, seed=_caption_seed(seed), language=said.language)


def exchangeable(scene: Scene, split: str) -> bool:
    """Whether two objects differ in colour, and would be of the split with each other's."""
    other = swap(scene, "colours", random.Random(0))
    return other != scene and (split == "heldout" or belongs(other, split))


def is_false(said: Caption, of: Scene, scene: Scene) -> bool:
    """Whether a caption of one scene is surely false of another: it names an object or an attribute that is not there."""
    if len(of.things) == len(scene.things) == 1:
        return not all(grammar.holds(of, attribute, scene) for attribute in said.mentions)
    return not {t.kind for t in of.things} <= {t.kind for t in scene.things}


def swap(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """The scene with one attribute (named as in `Caption.mentions`) changed to another value, or, of two objects, with each other's "colours"."""
    if attribute == "colours":
        first, second = scene.things
        return dataclasses.replace(scene, things=(dataclasses.replace(first, colour=second.colour), dataclasses.replace(second, colour=first.colour)))
    if attribute == "side":
        return dataclasses.replace(scene, side="right" if scene.side == "left" else "left")
    if attribute == "place":
        return dataclasses.replace(scene, place=rng.choice([p for p in PLACES if p != scene.place]))
    i, field = int(attribute[0]), attribute[2:]
    thing = scene.things[i]
    family = ANIMALS if thing.kind in ANIMALS else grammar.THINGS
    values = {"kind": family, "colour": COLOURS, "size": SIZES, "pose": POSES}[field]
    changed = dataclasses.replace(thing, **{field: rng.choice([v for v in values if v != getattr(thing, field)])})
    return dataclasses.replace(scene, things=tuple(changed if k == i else t for k, t in enumerate(scene.things)))


def _caption_seed(seed: int) -> int:
    return seed ^ 0x5BD1E995


@dataclasses.dataclass(frozen=True)
class Storybook:
    """The source: `objects` is the most objects a scene has, `hard` the share of hard negatives among the negative captions."""

    size: int
    split: str = "train"
    seed: int = 0
    objects: int = 1
    hard: float = 0.5

    splits: ClassVar[tuple[str, ...]] = SPLITS
    truth: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"storybook has no split {self.split!r}: choose one of {', '.join(SPLITS)}")
        if self.objects not in (1, 2):
            raise UserError(f"--data.objects {self.objects}: storybook scenes have 1 or 2 objects")
        if not 16 <= self.size <= 512:
            raise UserError(f"storybook draws pictures of 16 to 512 pixels, not {self.size}")

    def __len__(self) -> int:
        return 2**31 - 1

    def scene(self, index: int) -> tuple[Scene, int]:
        """The scene at an index and the seed that everything else about it is drawn from."""
        rng = random.Random((self.seed * len(SPLITS) + SPLITS.index(self.split)) * 2**40 + index)
        return draw_scene(rng, self.split, self.objects), rng.getrandbits(48)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Picture, caption, negative caption and ground truth; `rng` is not used: the index decides everything."""
        scene, seed = self.scene(index)
        said = grammar.caption(scene, _caption_seed(seed))
        _, wrong = negative(scene, said, seed, self.split, self.objects, self.hard)
        return Example(render(scene, self.size, seed), said.text, wrong.text, (scene, said))

    def captions(self, limit: int) -> list[str]:
        """The captions of the first `limit` examples, for the tokenizer."""
        return [grammar.caption(scene, _caption_seed(seed)).text for scene, seed in map(self.scene, range(limit))]

    def prompts(self) -> list[str]:
        """Fixed prompts for sample grids, half of them of two objects where scenes have two."""
        one = [
            "一只棕色的大熊站在雪地里", "a big brown bear standing in the snow", "a small red car in the desert", "海面上有一艘白色的大船",
            "a big yellow flower on the grass", "夜空下坐着一只黑色的小猫", "a small white rabbit jumping in the forest", "城市里有一把紫色的大雨伞",
        ]  # fmt: skip
        two = [
            "a red cat to the left of a blue house in the snow", "a blue cat to the left of a red house in the snow",
            "沙滩上，一只黄色的大狗在一只黑色的小兔子的左边", "沙滩上，一只黄色的大狗在一只黑色的小兔子的右边",
        ]  # fmt: skip
        return one if self.objects == 1 else [*one[:2], *two, *one[2:4]]
