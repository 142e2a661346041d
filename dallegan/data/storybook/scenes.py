"""`storybook`: illustrated scenes drawn by code, with captions in two languages.

The split `heldout` has a tenth of all object × colour × place triples, which never occur in `train`.
"""

import dataclasses
import random

import numpy as np

from dallegan.data.procedural import Procedural, draw_until, in_split
from dallegan.data.source import Example
from dallegan.data.storybook import art, grammar
from dallegan.data.storybook.grammar import (
    ANIMALS,
    COLOURS,
    OBJECTS,
    PLACES,
    POSES,
    SIDES,
    SIZES,
    Caption,
    Scene,
    Thing,
)
from dallegan.data.storybook.sprites import sprite
from dallegan.errors import UserError

RGB: dict[str, art.Rgb] = {
    "red": (216, 44, 44),
    "orange": (242, 136, 30),
    "yellow": (248, 216, 48),
    "green": (64, 168, 70),
    "blue": (52, 96, 214),
    "purple": (138, 66, 182),
    "pink": (246, 142, 184),
    "brown": (136, 86, 50),
    "black": (52, 50, 56),
    "white": (244, 244, 244),
}
HEIGHT = {"big": 0.66, "small": 0.42}  # of an object, in image heights


def is_heldout(kind: str, colour: str, place: str) -> bool:
    """Returns whether a triple is kept out of `train`: one colour of ten for each (object, place)."""
    return (OBJECTS.index(kind) + COLOURS.index(colour) + 3 * PLACES.index(place)) % 10 == 7


def belongs(scene: Scene, split: str) -> bool:
    """Returns whether all triples of a scene may occur in a split."""
    return all(in_split(is_heldout(t.kind, t.colour, scene.place), split) for t in scene.things)


def draw_scene(rng: random.Random, split: str, objects: int) -> Scene:
    """Draws a scene of 1 to `objects` objects of different kinds, whose triples may occur in the split."""
    place = rng.choice(PLACES)
    count = rng.choice(range(1, objects + 1))
    things: list[Thing] = []

    def allowed(pair: tuple[str, str]) -> bool:
        kind, colour = pair
        return in_split(is_heldout(kind, colour, place), split) and all(kind != t.kind for t in things)

    for _ in range(count):
        kind, colour = draw_until(allowed, lambda: (rng.choice(OBJECTS), rng.choice(COLOURS)))
        things.append(Thing(kind, colour, rng.choice(SIZES), rng.choice(POSES) if kind in ANIMALS else None))
    return Scene(place, tuple(things), rng.choice(SIDES) if len(things) == 2 else None)


def names_triples(scene: Scene, caption: Caption) -> bool:
    """Returns whether a caption names the place, and kind and colour of each object.

    Only such a caption asks for a combination that `heldout` keeps apart.
    """
    fields = {f"{i}.{field}" for i in range(len(scene.things)) for field in ("kind", "colour")}
    return {"place", *fields} <= caption.mentions


def redraw(scene: Scene, caption: Caption, split: str, rng: random.Random) -> Scene:
    """Draws another scene of the split that the caption is true of: redraws all that it does not name."""
    keep = lambda name, old, values: old if name in caption.mentions else rng.choice(values)

    def thing(i: int, t: Thing) -> Thing:
        colour, size = keep(f"{i}.colour", t.colour, COLOURS), keep(f"{i}.size", t.size, SIZES)
        return Thing(t.kind, colour, size, t.pose and keep(f"{i}.pose", t.pose, POSES))

    def draw() -> Scene:
        things = tuple(thing(i, t) for i, t in enumerate(scene.things))
        return Scene(keep("place", scene.place, PLACES), things, scene.side)

    return draw_until(lambda other: belongs(other, split), draw)


def render(scene: Scene, size: int, seed: int) -> np.ndarray:
    """Draws a scene as uint8[size, size, 3].

    The seed decides what a scene leaves open: position, shade, horizon, weather and which way things face.
    """
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
        colour = art.tint(RGB[thing.colour], 0.92 + 0.16 * rng.random())
        colour = art.mix(colour, (128, 128, 128), 0.06 * rng.random())
        canvas.sprite(
            shape, x, ground, height, colour, flip=rng.random() < 0.5, turn=0.1 * (rng.random() - 0.5)
        )
    return canvas.finish()


def negative(
    scene: Scene, caption: Caption, seed: int, split: str, objects: int, hard: float
) -> tuple[Scene, Caption]:
    """Returns a caption that is false of the scene, and the scene that it is true of.

    With probability `hard` it is a hard negative: the same sentence with one named attribute swapped.
    Otherwise it is the caption of another scene. The attribute is drawn by group. The kind of an object, the
    hardest to tell apart, is as likely as all other attributes together. If there are two objects, a swap of
    their sides or colours is twice as likely as these two groups together: both sentences then have the same
    words, and that is learned last (benchmarks/LOG.md).
    """
    rng = random.Random(seed ^ 0x9E3779B9)  # independent of what `render` draws from the seed
    if rng.random() >= hard:
        other = draw_scene(rng, split, objects)
        text = grammar.caption(other, rng.getrandbits(48), caption.language)
        if is_false(text, other, scene):
            return other, text
    names = caption.mentions
    if {"0.colour", "1.colour"} <= names and exchangeable(scene, split):
        names |= {"colours"}
    kinds = sorted(a for a in names if a.endswith("kind"))
    relations = [a for a in ("side", "colours") if a in names]
    rest = sorted(names - {*kinds, *relations})
    groups = [group for group in (kinds, rest, *4 * [relations]) if group]
    attribute = rng.choice(groups[int(rng.random() * len(groups))])
    allowed = lambda other: split == "heldout" or belongs(other, split)
    other = draw_until(allowed, lambda: swap(scene, attribute, rng))
    return other, grammar.caption(other, seed=_caption_seed(seed), language=caption.language)


def exchangeable(scene: Scene, split: str) -> bool:
    """Returns whether two objects differ in colour and may occur in the split with each other's."""
    other = swap(scene, "colours", random.Random(0))
    return other != scene and (split == "heldout" or belongs(other, split))


def is_false(caption: Caption, described: Scene, scene: Scene) -> bool:
    """Returns whether the caption of `described` is surely false of `scene`: something it names is absent."""
    if len(described.things) == len(scene.things) == 1:
        return not all(grammar.holds(described, attribute, scene) for attribute in caption.mentions)
    return not {t.kind for t in described.things} <= {t.kind for t in scene.things}


def swap(scene: Scene, attribute: str, rng: random.Random) -> Scene:
    """Returns the scene with one attribute, named as in `Caption.mentions`, changed to another value.

    The attribute "colours" exchanges the colours of two objects.
    """
    if attribute == "colours":
        first, second = scene.things
        recolour = lambda thing, other: dataclasses.replace(thing, colour=other.colour)
        return dataclasses.replace(scene, things=(recolour(first, second), recolour(second, first)))
    if attribute == "side":
        return dataclasses.replace(scene, side="right" if scene.side == "left" else "left")
    if attribute == "place":
        return dataclasses.replace(scene, place=rng.choice([p for p in PLACES if p != scene.place]))
    i, field = int(attribute[0]), attribute[2:]
    thing = scene.things[i]
    family = ANIMALS if thing.kind in ANIMALS else grammar.THINGS
    values = {"kind": family, "colour": COLOURS, "size": SIZES, "pose": POSES}[field]
    changed = dataclasses.replace(
        thing, **{field: rng.choice([v for v in values if v != getattr(thing, field)])}
    )
    return dataclasses.replace(
        scene, things=tuple(changed if k == i else t for k, t in enumerate(scene.things))
    )


def _caption_seed(seed: int) -> int:
    return seed ^ 0x5BD1E995


@dataclasses.dataclass(frozen=True)
class Storybook(Procedural):
    """Scenes of one or two objects in a place."""

    objects: int = 1  # most objects in a scene, 1 or 2
    hard: float = 0.5  # fraction of hard negatives among the false captions

    truth = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objects not in (1, 2):
            raise UserError(f"--data.objects {self.objects}: storybook scenes have 1 or 2 objects")
        if not 16 <= self.size <= 512:
            raise UserError(f"storybook draws images of 16 to 512 pixels, not {self.size}")

    def scene(self, index: int) -> tuple[Scene, int]:
        """Returns the scene at an index, and the seed that the rest of the example is drawn from."""
        rng = self.rng(index)
        return draw_scene(rng, self.split, self.objects), rng.getrandbits(48)

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Returns image, caption, false caption and (Scene, Caption); the index decides, `rng` is unused."""
        scene, seed = self.scene(index)
        return self._example(scene, grammar.caption(scene, _caption_seed(seed)), seed, seed)

    def again(self, index: int, rng: np.random.Generator) -> Example:
        """Returns another scene that the same caption is true of: all that it leaves open is drawn anew."""
        scene, seed = self.scene(index)
        caption = grammar.caption(scene, _caption_seed(seed))
        other = redraw(scene, caption, self.split, random.Random(int(rng.integers(2**48))))
        return self._example(other, caption, seed, int(rng.integers(2**48)))

    def _example(self, scene: Scene, caption: Caption, seed: int, drawing: int) -> Example:
        """The example of a scene: false caption by `seed`, as its true one; all else by `drawing`."""
        _, false = negative(scene, caption, seed, self.split, self.objects, self.hard)
        return Example(render(scene, self.size, drawing), caption.text, false.text, (scene, caption))

    def captions(self, limit: int) -> list[str]:
        """Returns the captions of the first `limit` examples, from which the tokenizer is trained."""
        return [
            grammar.caption(scene, _caption_seed(seed)).text for scene, seed in map(self.scene, range(limit))
        ]

    def prompts(self) -> list[str]:
        """Returns the captions of sample grids, half of them of two objects if scenes may have two."""
        one = [
            "一只棕色的大熊站在雪地里",
            "a big brown bear standing in the snow",
            "a small red car in the desert",
            "海面上有一艘白色的大船",
            "a big yellow flower on the grass",
            "夜空下坐着一只黑色的小猫",
            "a small white rabbit jumping in the forest",
            "城市里有一把紫色的大雨伞",
        ]
        two = [
            "a red cat to the left of a blue house in the snow",
            "a blue cat to the left of a red house in the snow",
            "沙滩上，一只黄色的大狗在一只黑色的小兔子的左边",
            "沙滩上，一只黄色的大狗在一只黑色的小兔子的右边",
        ]
        return one if self.objects == 1 else [*one[:2], *two, *one[2:4]]
