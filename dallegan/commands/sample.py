"""Draw captions: dallegan sample PROMPT... [--model NAME|DIR] [--n N] [--seed S] [--out DIR]."""

import contextlib
import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import tyro
from PIL import Image

from dallegan.commands import ModelName
from dallegan.commands.save_images import (
    BLOCK,
    GRID_COLUMNS,
    GRID_ROWS,
    SamplingOptions,
    SavedImage,
    write_animations,
    write_grid,
    write_images,
)
from dallegan.data.file_source import UnusableRecord
from dallegan.data.rows import read_lines
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.image import Format
from dallegan.io.text import check_encoding, say, shown
from dallegan.sampling import DEFAULT, load
from dallegan.tokenizer import is_blank

RANGES = {
    "n": (1, 10**6),
    "best_of": (1, 10**6),
    "seed": (0, 2**32 - 1),
    "frames": (2, 1000),
    "size": (16, 4096),
}


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw images of captions with a trained model: one file per image, and a sheet of all.

    For example: dallegan sample "a small red car in the desert" 一只棕色的大熊站在雪地里 --n 8. The same
    prompt, seed and model give the same pixels. Images that exist already are not drawn again, so a command
    that was stopped goes on.
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = ()
    """captions, Chinese or English; - reads them from stdin"""
    file: pathlib.Path | None = None  # a text file of more prompts, one a line
    encoding: str = ""  # of the text file and of stdin without a byte order mark, for example gbk; "": utf-8
    model: ModelName = DEFAULT
    n: int = 4  # images per prompt
    seed: int = 0  # the same seed gives the same images
    truncation: float = 1.0  # scale of the noise: below 1 less variety, more typical images
    best_of: int = 1  # candidates per image, of which the discriminator's favourite is kept
    interpolate: tuple[str, ...] = ()
    """one or two captions: a WebP animation from one to the other, or of one from noise to noise"""
    frames: int = 24  # of an animation, one way
    out: pathlib.Path = pathlib.Path("samples")  # directory for the files, which are named after the prompts
    format: Format = "png"  # of the images; both formats are lossless
    size: int = 128  # least width of an image on the sheet, pixels; small images are enlarged
    overwrite: bool = False  # write over other files of the same names; without, a new file is called NAME-2
    json: bool = False  # print a JSON object per image (path, prompt, seed, index, score) instead of its path
    show: bool = False  # open the sheet in the system's viewer


def check(args: Args) -> None:
    """Raises UserError if a setting is out of range."""
    for name, (low, high) in RANGES.items():
        value, flag = getattr(args, name), name.replace("_", "-")
        if not low <= value <= high:
            limit = f"at least {low}" if value < low else f"at most {high}"
            raise UserError(f"--{flag} {value}: must be {limit}")
    if len(args.interpolate) > 2:
        raise UserError(f"--interpolate: takes one caption or two, not {len(args.interpolate)}")
    if any(is_blank(prompt) for prompt in (*args.prompts, *args.interpolate)):
        raise UserError("a prompt is empty: say what to draw")
    if not args.prompts and not args.file and not args.interpolate:
        example = 'dallegan sample "a big brown bear standing in the snow"'
        raise UserError(f"no prompt: say what to draw, for example: {example}")


def read_prompts(file: pathlib.Path | None, encoding: str = "") -> Iterator[str]:
    """Yields the prompts of a file, or of stdin if `file` is None, one a line. Raises UserError."""
    name = file or "stdin"
    try:
        with open(file, "rb") if file else contextlib.nullcontext(sys.stdin.buffer) as source:
            for number, line in read_lines(source, encoding):
                if isinstance(line, UnusableRecord):
                    raise UserError(f"{name}, line {number}: {line}")
                if not is_blank(line):
                    yield line.strip()
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}") from None


def count_prompts(args: Args) -> int | None:
    """Returns the number of prompts; None if they come from stdin or a pipe, which cannot be read twice."""
    if "-" in args.prompts or (args.file and args.file.exists() and not args.file.is_file()):
        return None
    return len(args.prompts) + (sum(1 for _ in read_prompts(args.file, args.encoding)) if args.file else 0)


def report(image: SavedImage, as_json: bool, flush: bool) -> None:
    """Prints the path of an image, or all about it as JSON."""
    about = {
        "path": str(image.path),
        "prompt": image.prompt,
        "seed": image.seed,
        "index": image.index,
        "score": image.score,
    }
    line = json.dumps(about, ensure_ascii=False)
    safe = line if line == shown(line, len(line)) else json.dumps(about)
    print(safe if as_json else shown(image.path, 4096), flush=flush)


def main(argv: Sequence[str]) -> None:
    """Parses the command line, loads the model, and writes images."""
    args = parse(Args, "dallegan sample", args=argv)
    check(args)
    check_encoding(args.encoding, "--encoding")
    stdin, total = "-" in args.prompts, count_prompts(args)
    if total == 0 and not args.interpolate:
        raise UserError(f"no prompts in {args.file}: write one a line")
    model = load(args.model)
    options = SamplingOptions(
        args.n, args.seed, args.truncation, args.best_of, args.format, args.overwrite, args.json
    )
    sources = (read_prompts(None, args.encoding) if prompt == "-" else [prompt] for prompt in args.prompts)
    prompts = itertools.chain(*sources, read_prompts(args.file, args.encoding) if args.file else ())
    if args.interpolate:
        a, b = args.interpolate[0], args.interpolate[-1]
        for animation in write_animations(model, a, b, args.out, options, args.frames):
            report(animation, args.json, flush=stdin)
    on_sheet: list[SavedImage] = []
    block = 1 if stdin and sys.stdin.isatty() else BLOCK
    for image in write_images(model, prompts, args.out, options, total, block):
        report(image, args.json, flush=stdin)
        if image.index < GRID_COLUMNS and len(on_sheet) < GRID_ROWS * min(args.n, GRID_COLUMNS):
            on_sheet.append(image)
    if not on_sheet:
        if not args.interpolate:
            raise UserError(f"no prompts {'on stdin' if stdin else f'in {args.file}'}: write one a line")
        return
    sheet = write_grid(model, on_sheet, args.out, options, args.size)
    if not args.json:
        say(sheet)
    if args.show:
        with Image.open(sheet) as image:
            image.show()
