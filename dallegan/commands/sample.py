"""Draw captions: python sample.py PROMPT... [--model NAME|DIR] [--n N] [--seed S] [--truncation T] [--best-of K] [--out DIR]"""

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

from dallegan.commands.save_images import BLOCK, GRID_COLUMNS, GRID_ROWS, Format, SamplingOptions, SavedImage, write_animation, write_grid, write_pictures
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.sampling import DEFAULT, load
from dallegan.tokenizer import is_blank


@dataclasses.dataclass(frozen=True)
class Args:
    """Draw pictures of captions with a trained model: one file a picture, and a sheet of all.

    For example: sample.py "a small red car in the desert" 一只棕色的大熊站在雪地里 --n 8. The same prompt, seed and model give the same pixels,
    whatever else is drawn; what is there already is not drawn again, so a command that was stopped goes on.
    """

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT...")] = ()  # captions, Chinese or English; - reads them from stdin
    file: pathlib.Path | None = None  # a text file of more prompts, one a line, UTF-8
    model: str = DEFAULT  # one that ships with the package, a run directory (RUN@best, RUN@STEP), a folder that `Model.save` wrote, gs://..., hf://org/name
    n: int = 4  # pictures of each prompt
    seed: int = 0  # the same seed gives the same pictures
    truncation: float = 1.0  # scale of the noise: below 1 less variety, more typical pictures
    best_of: int = 1  # draw so many for each picture and keep the one that the discriminator scores highest
    interpolate: tuple[str, ...] = ()  # one or two captions: an animation from one to the other, or of one from noise to noise
    frames: int = 24  # of an animation, one way
    out: pathlib.Path = pathlib.Path("samples")  # directory for the files; names come from the prompts
    format: Format = "png"  # of the pictures; webp is lossless; animations are WebP with webp, else GIF
    size: int = 128  # pixels of a picture's side in the sheet, about: small pictures are enlarged by whole pixels
    overwrite: bool = False  # write over files of the same names; else a new one is called NAME-2
    json: bool = False  # print a JSON object a line (path, prompt, seed, index, score) instead of the paths
    show: bool = False  # open the sheet in the system's viewer


def check(args: Args) -> None:
    """UserError for settings out of range."""
    for name, low, high in (("n", 1, 10**6), ("best_of", 1, 10**6), ("seed", 0, 2**32 - 1), ("frames", 2, 1000), ("size", 16, 4096)):
        value, flag = getattr(args, name), name.replace("_", "-")
        if not low <= value <= high:
            raise UserError(f"--{flag} {value}: must be at least {low}" if value < low else f"--{flag} {value}: must be at most {high}")
    if len(args.interpolate) > 2:
        raise UserError(f"--interpolate: takes one caption or two, not {len(args.interpolate)}")
    if any(is_blank(prompt) for prompt in (*args.prompts, *args.interpolate)):
        raise UserError("a prompt is empty: say what to draw")
    if not args.prompts and not args.file and not args.interpolate:
        raise UserError('no prompt: say what to draw, for example: python sample.py "a big brown bear standing in the snow"')


def lines(file: pathlib.Path | None) -> Iterator[str]:
    """Prompts of a file, of stdin without one: a line each, blank ones left out. UserError where it cannot be read."""
    try:
        with open(file, "rb") if file else contextlib.nullcontext(sys.stdin.buffer) as source:
            for line in source:
                if not is_blank(text := line.decode("utf-8-sig" if file else "utf-8", "replace").strip()):
                    yield text
    except OSError as error:
        raise UserError(f"cannot read {file or 'stdin'}: {error.strerror}") from None


def main(argv: Sequence[str]) -> None:
    """Parses the command line, loads the model, draws and writes."""
    args = parse(Args, "dallegan sample", args=argv)
    check(args)
    stdin = "-" in args.prompts
    once = args.file is not None and args.file.exists() and not args.file.is_file()  # a pipe, which cannot be read twice
    total = None if stdin or once else len(args.prompts) + (sum(1 for _ in lines(args.file)) if args.file else 0)
    if total == 0 and not args.interpolate:
        raise UserError(f"no prompts in {args.file}: write one a line")
    model = load(args.model)
    order = SamplingOptions(args.n, args.seed, args.truncation, args.best_of, args.format, args.overwrite, args.json)
    given = (lines(None) if prompt == "-" else [prompt] for prompt in args.prompts)
    prompts = itertools.chain(*given, lines(args.file) if args.file else ())
    shown = []

    def tell(written: SavedImage) -> None:
        about = {"path": str(written.path), "prompt": written.prompt, "seed": written.seed, "index": written.index, "score": written.score}
        print(json.dumps(about, ensure_ascii=False) if args.json else written.path, flush=stdin)

    if args.interpolate:
        for written in write_animation(model, args.interpolate[0], args.interpolate[-1], args.out, order, args.frames):
            tell(written)
    for written in write_pictures(model, prompts, args.out, order, total, 1 if stdin and sys.stdin.isatty() else BLOCK):
        tell(written)
        shown += [written] * (written.index < GRID_COLUMNS and len(shown) < GRID_ROWS * min(args.n, GRID_COLUMNS))
    if not shown and not args.interpolate:
        raise UserError(f"no prompts {'on stdin' if stdin else f'in {args.file}'}: write one a line")
    if not shown:
        return
    sheet = write_grid(model, shown, args.out, order, args.size)
    if not args.json:
        print(sheet)
    if args.show:
        with Image.open(sheet) as image:
            image.show()
