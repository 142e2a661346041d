"""Captions to files: pictures that say what they are, grids, animations. A picture that is there already is not drawn again."""

import dataclasses
import hashlib
import io
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from dallegan.errors import UserError
from dallegan.io.files import write_atomic
from dallegan.io.image import KINDS, grid, png
from dallegan.sampling import Model

Format = Literal["png", "webp", "jpeg"]
QUALITY = {"webp": {"lossless": True}, "jpeg": {"quality": 95, "subsampling": 0}}
BLOCK = 64  # prompts drawn together
GRID_ROWS, GRID_COLUMNS = 64, 16  # prompts shown in the sheet, and pictures of each
SHEET = 12_000  # most pixels of its width and height: WebP takes 16,383
MILLISECONDS = 80  # a frame of an animation
MOST = 4000  # characters of a prompt in a JPEG file, whose EXIF has room for 64 KB: up to 12 bytes each


@dataclasses.dataclass(frozen=True)
class SavedImage:
    """A picture on disk."""

    path: pathlib.Path
    prompt: str
    seed: int
    index: int  # among the pictures of its prompt
    score: float | None  # the discriminator's, where it was asked for
    new: bool  # False: it was there already


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
        """What a picture is a function of; it is in its metadata."""
        said = _told(prompt) if self.format == "jpeg" else prompt
        about = {"prompt": said, "seed": self.seed, "index": index, "truncation": self.truncation, "best_of": self.best_of, "model": model.digest}
        return {name: str(value) for name, value in about.items()}


def write_pictures(model: Model, prompts: Iterable[str], out: pathlib.Path, order: SamplingOptions, total: int | None = None, block: int = BLOCK) -> Iterator[SavedImage]:
    """Writes one file a picture and yields it, prompt by prompt, at constant memory. total: prompts, where known, for the progress bar.

    A file whose metadata say that it is the picture to be drawn is left alone, so that a command that was killed goes on; any other file is never
    overwritten unless `order` says so. UserError where `out` cannot be written to.
    """
    prompts, pictures = (_plain(prompt) for prompt in prompts), None if total is None else total * order.n
    with tqdm(total=pictures, unit="img", disable=not sys.stderr.isatty() or (pictures or BLOCK) < BLOCK) as bar:
        while asked := list(itertools.islice(prompts, block)):
            todo = [p for p in dict.fromkeys(asked) if not all(_place(out, order.info(model, p, k), order)[1] for k in range(order.n))]
            drawn = _draw(model, tuple(todo), order)
            for prompt, k in ((prompt, k) for prompt in asked for k in range(order.n)):
                picture, score = next(drawn) if prompt in todo else (None, None)
                info = order.info(model, prompt, k)
                path, there = _place(out, info, order)
                if not there and picture is not None:
                    save(picture, path, order.format, info)
                elif order.score and score is None:
                    score = float(model.score(open_picture(path)[None], prompt)[0])
                yield SavedImage(path, prompt, order.seed, k, score, not there)
                bar.update()
                if k == order.n - 1 and prompt in todo:
                    todo.remove(prompt)  # should it be asked for again, it is there


def _draw(model: Model, prompts: Sequence[str], order: SamplingOptions) -> Iterator[tuple[np.ndarray, float | None]]:
    """Pictures and scores, prompt by prompt."""
    if not prompts:
        return
    at = 0
    for images in model.stream(prompts, order.n, order.seed, order.truncation, order.best_of):
        captions = [prompts[i // order.n] for i in range(at, at + len(images))]
        at += len(images)
        scores = model.score(_as_written(images, order.format), captions).tolist() if order.score and len(images) else [None] * len(images)
        yield from zip(images, scores, strict=True)


def _as_written(images: np.ndarray, form: Format) -> np.ndarray:
    """Pictures as their files will have them, so that scores are those of the files."""
    return np.stack([np.asarray(Image.open(io.BytesIO(_encode(x, form, {})))) for x in images]) if form == "jpeg" else images


def write_grid(model: Model, written: list[SavedImage], out: pathlib.Path, order: SamplingOptions, cell: int) -> pathlib.Path:
    """A sheet of pictures that were written, a row a prompt under its caption, each `cell` pixels wide or more: of so many rows and columns, and of
    such a `cell` at most, that its sides stay below `SHEET`."""
    side, gap, caption = model.config.data.size, 4, 48  # of two lines
    rows = [list(row)[:GRID_COLUMNS][: SHEET // (side + gap)] for _, row in itertools.groupby(written, key=lambda w: w.prompt)][: SHEET // (side + caption)]
    cell = min(cell, SHEET // len(rows) - caption, SHEET // max(map(len, rows)) - gap)
    prompts = [row[0].prompt for row in rows]
    info = order.info(model, json.dumps(prompts, ensure_ascii=False), 0) | {"n": str(order.n), "cell": str(cell)}
    path, there = _free(out, "grid", info, order)
    if not there:
        sheet = grid([[open_picture(w.path) for w in row] for row in rows], [" ".join(p.split()) for p in prompts], cell)
        save(np.asarray(sheet), path, order.format, info)
    return path


def write_animation(model: Model, a: str, b: str, out: pathlib.Path, order: SamplingOptions, frames: int) -> Iterator[SavedImage]:
    """The way from caption to caption and back, `n` times; of one caption, from noise to noise. GIF, or WebP where that is the format."""
    form, a, b = "webp" if order.format == "webp" else "gif", _plain(a), _plain(b)
    order = dataclasses.replace(order, best_of=1)  # nothing is chosen here
    for k in range(order.n):
        info = order.info(model, a, k) | {"to": b, "frames": str(frames)}
        path, there = _free(out, f"{slug(a)}-to-{slug(b)}-s{order.seed}-{k}", info, order, form)
        if not there:
            way = model.interpolate(a, b, frames, k, order.seed, order.truncation)
            side = max(1, 256 // way.shape[1]) * way.shape[1]
            pictures = [Image.fromarray(x).resize((side, side), Image.Resampling.NEAREST) for x in [*way, *way[-2:0:-1]]]
            file, options = io.BytesIO(), {"lossless": True, "exif": exif(info)} if form == "webp" else {"comment": json.dumps(info).encode()}
            pictures[0].save(file, form, save_all=True, append_images=pictures[1:], duration=MILLISECONDS, loop=0, **options)
            _write(path, file.getvalue())
        yield SavedImage(path, a, order.seed, k, None, not there)


def save(picture: np.ndarray, path: pathlib.Path, form: Format, info: Mapping[str, str]) -> None:
    """Writes uint8[H, W, 3] with what it is in its metadata: PNG text, or JSON in the EXIF description of others. Whole or not at all."""
    _write(path, _encode(picture, form, info))


def _encode(picture: np.ndarray, form: Format, info: Mapping[str, str]) -> bytes:
    image, file = Image.fromarray(picture), io.BytesIO()
    if form == "png":
        return png(image, info)
    image.save(file, form, exif=exif(info), **QUALITY[form])
    return file.getvalue()


def _write(path: pathlib.Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from None


def exif(info: Mapping[str, str]) -> Image.Exif:
    """EXIF whose image description is the JSON of `info`, in ASCII as it must be."""
    made = Image.Exif()
    made[ExifTags.Base.ImageDescription] = json.dumps(info)
    return made


def read_info(path: pathlib.Path) -> dict[str, str]:
    """What a picture that was written here says of itself; {} for any other file."""
    try:
        with Image.open(path, formats=KINDS) as image:
            if image.format == "PNG":
                image.load()  # text may follow the pixels
                return {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
            said = image.info.get("comment") if image.format == "GIF" else image.getexif().get(ExifTags.Base.ImageDescription)
            found = json.loads(said or "{}")
            return found if isinstance(found, dict) else {}
    except Exception:  # Pillow's decoders raise nearly anything on what is no picture
        return {}


def open_picture(path: pathlib.Path) -> np.ndarray:
    """uint8[H, W, 3]."""
    with Image.open(path, formats=KINDS) as image:
        return np.asarray(image.convert("RGB"))


def _place(out: pathlib.Path, info: Mapping[str, str], order: SamplingOptions) -> tuple[pathlib.Path, bool]:
    return _free(out, f"{slug(info['prompt'])}-s{info['seed']}-{info['index']}", info, order)


def _told(prompt: str) -> str:
    """A prompt as a JPEG file can hold it."""
    return prompt if len(prompt) <= MOST else f"{prompt[:MOST]}... sha256 {hashlib.sha256(prompt.encode()).hexdigest()}"


def _plain(prompt: str) -> str:
    """As it can be written: a lone surrogate has no UTF-8 form."""
    return prompt.encode("utf-8", "replace").decode()


def _free(out: pathlib.Path, stem: str, info: Mapping[str, str], order: SamplingOptions, suffix: str = "") -> tuple[pathlib.Path, bool]:
    """`stem.png`, or `stem-2.png` and so on where that is another picture; and whether it is there already."""
    suffix = suffix or {"jpeg": "jpg"}.get(order.format, order.format)
    for i in itertools.count(1):
        path = out / (f"{stem}.{suffix}" if i == 1 else f"{stem}-{i}.{suffix}")
        if not path.exists():
            return path, False
        if read_info(path) == info:
            return path, not order.overwrite
        if order.overwrite:
            return path, False
    raise AssertionError


def slug(prompt: str) -> str:
    """A file name for a prompt: its letters and digits of any script, at most 40 and 80 bytes; with a hash where that is not all there is to it."""
    words = re.sub(r"\W+", "-", prompt).strip("-_")[:40].encode()[:80].decode(errors="ignore")
    if words and words.replace("-", " ") == prompt:
        return words
    return f"{words or 'prompt'}-{hashlib.sha256(prompt.encode()).hexdigest()[:6]}"
