"""Models to and from the Hugging Face Hub: `python -m dallegan.hub download NAME`, `python -m dallegan.hub upload DIR ORG/NAME`."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.io.cli import parse
from dallegan.io.files import write_atomic
from dallegan.io.image import grid, save_png
from dallegan.io.remote import NEEDED, explain, fetch, hub
from dallegan.run.checkpoint import Checkpoints
from dallegan.run.metrics_file import evaluated
from dallegan.sampling import SHIPPED, Model, load, split_checkpoint

BEAR = "一只棕色的大熊站在雪地里", "a big brown bear standing in the snow"


@dataclasses.dataclass(frozen=True)
class Download:
    """Copy a model to a folder, and check that it loads."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]  # hf://org/name (or org/name), gs://bucket/model, or one that ships
    to: pathlib.Path | None = None  # the folder, new; default: ./NAME without what is before its last slash


@dataclasses.dataclass(frozen=True)
class Upload:
    """Send a model to the Hugging Face Hub: weights in bfloat16, configuration, tokenizer, a model card and a picture. Log in first: hf auth login."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]  # a run directory (DIR@best: its best checkpoint), or a folder of `Model.save`
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ORG/NAME")]  # made where there is none
    license: str = "other"  # of the weights, as the Hub abbreviates it: apache-2.0, cc-by-4.0, ...
    private: bool = False  # where it is made: for you alone
    card: pathlib.Path | None = None  # your own README.md, instead of the one that is generated


Command = Annotated[Download, tyro.conf.subcommand("download")] | Annotated[Upload, tyro.conf.subcommand("upload")]


def download(args: Download) -> None:
    """UserError where there is no such model, or no place for it."""
    to = args.to or pathlib.Path(args.name.rstrip("/").rpartition("/")[2].partition("@")[0])
    part = to / ".part"  # whole or not at all; `to` may be a mounted disk, or where one is
    if to.exists() and (not to.is_dir() or any(p != part for p in to.iterdir())):
        raise UserError(f"{to} is there already: name a new folder with --to")
    shipped = SHIPPED / args.name
    known = "/" not in args.name and shipped.is_dir()
    folder = shipped if known else fetch(args.name if "://" in args.name else f"hf://{args.name}")
    load(folder)  # before it is copied: what is damaged or foreign is said here
    try:
        part.mkdir(parents=True, exist_ok=True)
        for name in NEEDED:
            shutil.copyfile(folder / name, part / name)
        for name in NEEDED:
            (part / name).replace(to / name)
        part.rmdir()
    except OSError as error:
        raise UserError(f"cannot write to {to}: {error.strerror}") from None
    print(f'{to}   draw with it: python sample.py "{BEAR[1]}" --model {"./" * (not to.is_absolute())}{to}')


def upload(args: Upload) -> None:
    """UserError where it is no model, or the Hub refuses it."""
    package = hub()
    model = load(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model.save(folder)
        prompts = example_prompts(model)
        images = model.sample(prompts, n=6)
        rows = [list(images[6 * i : 6 * (i + 1)]) for i in range(len(prompts))]
        save_png(grid(rows, prompts), folder / "samples.png", {"prompts": json.dumps(prompts, ensure_ascii=False), "seed": "0"})
        try:
            text = args.card.read_text("utf-8") if args.card else card(model, args.name, args.license, prompts, measured(args.model, model.config.log.keep))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {args.card}: {error}") from None
        write_atomic(folder / "README.md", text)
        try:
            api = package.HfApi(library_name="dallegan")
            url = api.create_repo(args.name, private=args.private, exist_ok=True)
            api.upload_folder(repo_id=args.name, folder_path=folder, commit_message="A dallegan model")
        except Exception as error:  # the package has dozens, and its transport others
            raise UserError(f"cannot upload to {args.name}: {explain(error)}") from None
    print(f'{url}   load it with: dallegan.load("hf://{args.name}")')


def example_prompts(model: Model) -> list[str]:
    """A few captions to show: of the data that it was trained on, where they are here; else the sentence of the design, in both languages."""
    try:
        return make_source(model.config, check=False).prompts()[:4]
    except UserError:
        return list(BEAR)


def measured(path: str, keep: int) -> dict[str, float]:
    """The last evaluation in a run's metrics.jsonl up to the checkpoint that is loaded from "RUN" or "RUN@best"; {} where there is none."""
    name, at = split_checkpoint(path)
    run = pathlib.Path(name).expanduser()
    if not (run / "checkpoints").is_dir():
        return {}
    with contextlib.closing(Checkpoints(run, keep)) as checkpoints:
        step = checkpoints.chosen(at) or checkpoints.newest() or 0
    try:
        lines = [line for line in evaluated(run / "metrics.jsonl") if line["step"] <= step]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {k: lines[-1][k] for k in ("images", "alignment")} if lines else {}


def card(model: Model, name: str, licence: str, prompts: list[str], scores: dict[str, float]) -> str:
    """The model card, in Markdown with the Hub's header."""
    c = model.config
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for part, tree in model.params.items()}
    penalty = f" with R1{' and R2' if c.loss.r2 else ''}, γ {c.loss.gamma[0]} to {c.loss.gamma[1]}" if any(c.loss.gamma) else ""
    chinese = any("\u4e00" <= x <= "\u9fff" for prompt in prompts for x in prompt)
    facts = {
        "pictures": f"{c.data.size}×{c.data.size} pixels",
        "parameters": f"encoder, generator and decoder {count['generator']:.1f} M, discriminator {count['discriminator']:.1f} M; bfloat16",
        "caption": f"encoder `{c.text.encoder}`" + f", up to {c.text.length - 1} tokens of a vocabulary of {model.tokenizer.size}" * (model.tokenizer.size > 0),
        "data": f"`{c.data.source}`",
        "budget": f"{c.steps} steps of {c.batch} pictures",
        "loss": f"`{c.loss.adversarial}`{penalty}",
        **({"alignment while training": f"{scores['alignment']:.3f} after {scores['images']:,} pictures"} if scores else {}),
        "model hash": f"`{model.digest}`",
    }  # fmt: skip
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"""---
license: {licence}
library_name: dallegan
pipeline_tag: text-to-image
language: [{"en, zh" if chinese else "en"}]
tags: [jax, flax, gan]
---

# {name.rpartition("/")[2]}

A text-to-image GAN trained with [dallegan](https://pypi.org/project/dallegan/): one forward pass from a caption to a picture.

![Captions and pictures, drawn with seed 0, none chosen](samples.png)

```python
import dallegan  # pip install 'dallegan[hub]'

images = dallegan.load("hf://{name}").sample([{json.dumps(prompts[0], ensure_ascii=False)}], n=4, seed=0)  # uint8 [4, {c.data.size}, {c.data.size}, 3]
```

| | |
|---|---|
{table}

## Limits

It draws what its training data show, and guesses at words that it has not seen there. Nobody has looked into what else it may do: say here what it is
good for, what it is not, and under what licence its data are.
"""


def main(argv: Sequence[str]) -> None:
    """Parses the command line, and downloads or uploads."""
    args = parse(Command, "dallegan hub", args=argv, description=__doc__)  # type: ignore[arg-type]  # a union of two
    if isinstance(args, Download):
        download(args)
    else:
        upload(args)
