"""From captions to files: images that say what they show, sheets and animations.

A file that exists already with the same content is not drawn again.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from dallegan.errors import UserError
from dallegan.io.files import write_atomic
from dallegan.io.image import GAP, LINE, Format, encode_animation, encode_image, grid, open_image, read_info
from dallegan.sampling import Model

BLOCK = 64  # prompts that are drawn together
GRID_ROWS, GRID_COLUMNS = 64, 16  # prompts on a sheet, and images of each
MAX_SIDE = 12_000  # of a sheet, in pixels; WebP holds 16,383
MILLISECONDS = 80  # per frame of an animation


@dataclasses.dataclass(frozen=True)
class SavedImage:
    """An image on disk."""

    path: pathlib.Path
    prompt: str
    seed: int
    index: int  # among the images of its prompt
    score: float | None  # the discriminator's; None if it was not asked for
    new: bool  # False if the file existed already


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """What to draw of each prompt, and how to write it."""

    n: int = 4
    seed: int = 0
    truncation: float = 1.0
    best_of: int = 1
    format: Format = "png"
    overwrite: bool = False
    score: bool = False

    def info(self, model: Model, prompt: str, index: int) -> dict[str, str]:
        """Returns all that determines an image, for the metadata of its file."""
        return {
            "prompt": prompt,
            "seed": str(self.seed),
            "index": str(index),
            "truncation": str(self.truncation),
            "best_of": str(self.best_of),
            "model": model.digest,
        }


def write_images(
    model: Model,
    prompts: Iterable[str],
    out: pathlib.Path,
    options: SamplingOptions,
    total: int | None = None,
    block: int = BLOCK,
) -> Iterator[SavedImage]:
    """Writes one file per image and yields it, prompt by prompt, at constant memory.

    A file whose metadata are those of the image to draw is left alone, so that a command that was killed goes
    on. Any other file is kept too, unless `options.overwrite`; the new one gets another name.

    Args:
        model: what draws.
        prompts: captions; one that comes again is drawn once.
        out: the folder for the files, which are named after the prompts.
        options: what to draw of each prompt, and how to write it.
        total: number of prompts for the progress bar; None if it is not known.
        block: prompts that are drawn together.

    Raises:
        UserError: if `out` cannot be written to.
    """
    prompts = (_encodable(prompt) for prompt in prompts)
    images = None if total is None else total * options.n
    with tqdm(total=images, unit="img", disable=not sys.stderr.isatty() or (images or BLOCK) < BLOCK) as bar:
        while chosen := list(itertools.islice(prompts, block)):
            missing = [p for p in dict.fromkeys(chosen) if not _all_exist(model, p, out, options)]
            drawn = _draw(model, tuple(missing), options)
            for prompt, k in itertools.product(chosen, range(options.n)):
                image, score = next(drawn) if prompt in missing else (None, None)
                info = options.info(model, prompt, k)
                path, exists = _free_path(out, _stem(info), info, options)
                if not exists and image is not None:
                    _write(path, encode_image(Image.fromarray(image), info, options.format))
                elif options.score and score is None:
                    score = float(model.score(open_image(path)[None], prompt)[0])
                yield SavedImage(path, prompt, options.seed, k, score, not exists)
                bar.update()
                if k == options.n - 1 and prompt in missing:
                    missing.remove(prompt)  # its files exist now, if it comes again in this block


def _draw(
    model: Model, prompts: Sequence[str], options: SamplingOptions
) -> Iterator[tuple[np.ndarray, float | None]]:
    """Yields images uint8[H, W, 3] and their scores, prompt by prompt."""
    if not prompts:
        return
    captions = (prompt for prompt in prompts for _ in range(options.n))
    for images in model.stream(prompts, options.n, options.seed, options.truncation, options.best_of):
        own = list(itertools.islice(captions, len(images)))
        scores = model.score(images, own).tolist() if options.score else [None] * len(images)
        yield from zip(images, scores, strict=True)


def write_grid(
    model: Model, written: Sequence[SavedImage], out: pathlib.Path, options: SamplingOptions, cell: int
) -> pathlib.Path:
    """Writes a sheet of images that exist, one row per prompt under its caption, and returns its path.

    Each image is at least `cell` pixels wide. Rows and columns are dropped and `cell` is lowered so that no
    side of the sheet exceeds MAX_SIDE.
    """
    side, caption = model.config.data.size, 2 * LINE + 2 * GAP
    groups = [list(group) for _, group in itertools.groupby(written, key=lambda image: image.prompt)]
    columns, rows = min(GRID_COLUMNS, MAX_SIDE // (side + GAP)), MAX_SIDE // (side + caption)
    groups = [group[:columns] for group in groups[:rows]]
    cell = min(cell, MAX_SIDE // len(groups) - caption, MAX_SIDE // max(map(len, groups)) - GAP)
    prompts = [group[0].prompt for group in groups]
    info = options.info(model, json.dumps(prompts, ensure_ascii=False), 0)
    info |= {"n": str(options.n), "cell": str(cell)}
    path, exists = _free_path(out, "grid", info, options)
    if not exists:
        images = [[open_image(image.path) for image in group] for group in groups]
        sheet = grid(images, prompts, cell)
        _write(path, encode_image(sheet, info, options.format))
    return path


def write_animations(
    model: Model, a: str, b: str, out: pathlib.Path, options: SamplingOptions, frames: int
) -> Iterator[SavedImage]:
    """Writes `options.n` WebP animations from caption a to caption b and back, and yields them.

    If both captions are the same, each animation goes from noise to noise. `frames` counts one way.
    """
    a, b, options = _encodable(a), _encodable(b), dataclasses.replace(options, best_of=1, format="webp")
    for k in range(options.n):
        info = options.info(model, a, k) | {"to": b, "frames": str(frames)}
        path, exists = _free_path(out, f"{slug(a)}-to-{slug(b)}-s{options.seed}-{k}", info, options)
        if not exists:
            way = model.interpolate(a, b, frames, k, options.seed, options.truncation)
            side = max(1, 256 // way.shape[1]) * way.shape[1]
            images = (Image.fromarray(image) for image in (*way, *way[-2:0:-1]))
            enlarged = [image.resize((side, side), Image.Resampling.NEAREST) for image in images]
            _write(path, encode_animation(enlarged, info, MILLISECONDS))
        yield SavedImage(path, a, options.seed, k, None, not exists)


def _write(path: pathlib.Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None


def _encodable(prompt: str) -> str:
    """Replaces lone surrogates, which have no UTF-8 form."""
    return prompt.encode("utf-8", "replace").decode()


def _all_exist(model: Model, prompt: str, out: pathlib.Path, options: SamplingOptions) -> bool:
    """Returns True if all images of a prompt are in `out` and may stay."""
    infos = (options.info(model, prompt, k) for k in range(options.n))
    return all(_free_path(out, _stem(info), info, options)[1] for info in infos)


def _stem(info: Mapping[str, str]) -> str:
    return f"{slug(info['prompt'])}-s{info['seed']}-{info['index']}"


def _free_path(
    out: pathlib.Path, stem: str, info: Mapping[str, str], options: SamplingOptions
) -> tuple[pathlib.Path, bool]:
    """Returns the path for an image, and True if the image is there already and need not be drawn.

    The path is `stem.png`, or `stem-2.png` and so on if another file has that name and must not be
    overwritten.
    """
    for i in itertools.count(1):
        path = out / (f"{stem}.{options.format}" if i == 1 else f"{stem}-{i}.{options.format}")
        if not path.exists():
            return path, False
        if read_info(path) == info:
            return path, not options.overwrite
        if options.overwrite:
            return path, False
    raise AssertionError


def slug(prompt: str) -> str:
    """Returns a file name for a prompt: its letters and digits of any script.

    The name has at most 40 letters of the prompt, and at most 80 bytes of them. A hash follows if the name
    does not say the whole prompt.
    """
    words = re.sub(r"\W+", "-", prompt).strip("-_")[:40].encode()[:80].decode(errors="ignore")
    if words and words.replace("-", " ") == prompt:
        return words
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
