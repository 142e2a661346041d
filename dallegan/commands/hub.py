"""Models from and to the Hugging Face Hub: dallegan hub download NAME, dallegan hub upload DIR ORG/NAME."""

import contextlib
import dataclasses
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from typing import Annotated

import jax
import tyro

from dallegan.data.pipeline import make_source
from dallegan.errors import UserError, line_of
from dallegan.io.cli import parse
from dallegan.io.files import expand_home, read_file, write_atomic
from dallegan.io.image import grid, save_png
from dallegan.io.remote import MODEL_FILES, fetch, hub, hub_error
from dallegan.io.text import decode, say, shown
from dallegan.run.checkpoint import KEEP, Checkpoints
from dallegan.run.metrics_file import evaluated
from dallegan.sampling import SHIPPED, Model, load, split_checkpoint

BEAR = "一只棕色的大熊站在雪地里", "a big brown bear standing in the snow"
CARD = """---
{header}
---

# {title}

A text-to-image GAN trained with [dallegan](https://pypi.org/project/dallegan/): one forward pass from a
caption to an image.

![Captions and images, drawn with seed 0, none selected](samples.png)

```python
import dallegan  # pip install 'dallegan[hub]'

model = dallegan.load("hf://{name}")
images = model.sample([{prompt}], n=4, seed=0)  # uint8 [4, {size}, {size}, 3]
```

| | |
|---|---|
{table}

## Limits

The model draws what its training data show, and guesses at words that it has not seen there. Nobody has
examined what else it may do. Say here what it is good for, what it is not good for, and what licence its data
have.
"""


@dataclasses.dataclass(frozen=True)
class Download:
    """Copy a model to a folder, and check that it loads."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """hf://org/name (or org/name), gs://bucket/model, or the name of a shipped model"""
    to: pathlib.Path | None = None  # a new folder; default: the last part of NAME


@dataclasses.dataclass(frozen=True)
class Upload:
    """Send a model to the Hugging Face Hub, with a model card and a sheet of images.

    The weights are sent in bfloat16. Log in first: hf auth login
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """a run's directory (DIR@best: its best checkpoint), or a folder that `Model.save` wrote"""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ORG/NAME")]
    """the repository; it is made if it does not exist"""
    license: str = "other"  # of the weights, as the Hub abbreviates it: apache-2.0, cc-by-4.0, ...
    private: bool = False  # make a repository that only you can see
    card: pathlib.Path | None = None  # your own README.md, instead of a generated one


Command = (
    Annotated[Download, tyro.conf.subcommand("download")] | Annotated[Upload, tyro.conf.subcommand("upload")]
)


def download(args: Download) -> None:
    """Copies a model. Raises UserError if there is no such model, or its files cannot be written."""
    to = args.to or pathlib.Path(args.name.rstrip("/").rpartition("/")[2].partition("@")[0])
    part = to / ".part"  # complete or not there at all; it is inside `to`, which may be a mounted disk
    if to.exists() and (not to.is_dir() or any(p != part for p in to.iterdir())):
        raise UserError(f"{to} is there already: name a new folder with --to")
    shipped = "/" not in args.name and (SHIPPED / args.name).is_dir()
    url = args.name if "://" in args.name else f"hf://{args.name}"
    folder = SHIPPED / args.name if shipped else fetch(url)
    load(folder)  # before the copy, so that damaged and foreign files are refused
    try:
        part.mkdir(parents=True, exist_ok=True)
        for name in MODEL_FILES:
            shutil.copyfile(folder / name, part / name)
        for name in MODEL_FILES:
            (part / name).replace(to / name)
        part.rmdir()
    except OSError as error:
        raise UserError(f"cannot write to {to}: {error.strerror}") from None
    model = to if to.is_absolute() else f"./{to}"
    say(f'{to}   draw with it: dallegan sample "{BEAR[1]}" --model {model}')


def upload(args: Upload) -> None:
    """Sends a model. Raises UserError if it cannot be loaded, or the Hub refuses it."""
    package = hub()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", args.license):
        raise UserError(f"--license {args.license}: abbreviate it as the Hub does, for example apache-2.0")
    try:
        text = decode(read_file(args.card)) if args.card else None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {args.card}: {line_of(error)}") from None
    model = load(args.model)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        model.save(folder)
        prompts = example_prompts(model)
        images = model.sample(prompts, n=6)
        rows = [list(images[6 * i : 6 * (i + 1)]) for i in range(len(prompts))]
        info = {"prompts": json.dumps(prompts, ensure_ascii=False), "seed": "0"}
        save_png(grid(rows, prompts), folder / "samples.png", info)
        if text is None:
            text = model_card(model, args.name, args.license, prompts, measured(args.model))
        write_atomic(folder / "README.md", text)
        try:
            api = package.HfApi(library_name="dallegan")
            url = api.create_repo(args.name, private=args.private, exist_ok=True)
            api.upload_folder(repo_id=args.name, folder_path=folder, commit_message="A dallegan model")
        except Exception as error:  # the package's own errors, those of its transport, the disk's
            raise hub_error(error, f"cannot upload to {args.name}") from None
    say(f'{url}   load it with: dallegan.load("hf://{args.name}")')


def example_prompts(model: Model) -> list[str]:
    """Returns up to four captions to show: from the training data if available, else the bear twice."""
    try:
        return make_source(model.config, check=False).prompts()[:4]
    except UserError:
        return list(BEAR)


def measured(path: str) -> dict[str, float]:
    """Returns `images` and `alignment` of the last evaluation up to the checkpoint of "RUN" or "RUN@best".

    Returns {} if `path` is not a run, or the run did not evaluate.
    """
    name, checkpoint = split_checkpoint(path)
    run = expand_home(name)
    if not (run / "checkpoints").is_dir():
        return {}
    with contextlib.closing(Checkpoints(run, KEEP)) as checkpoints:
        step = checkpoints.chosen(checkpoint) or checkpoints.newest() or 0
    try:
        lines = [line for line in evaluated(run / "metrics.jsonl") if line["step"] <= step]
    except OSError:
        return {}
    return {k: lines[-1][k] for k in ("images", "alignment")} if lines else {}


def model_card(
    model: Model, name: str, licence: str, prompts: Sequence[str], scores: dict[str, float]
) -> str:
    """Returns the model card of the repository `name`: Markdown, after a header that the Hub reads."""
    config, title = model.config, name.rpartition("/")[2]
    source = plain(config.data.source)
    chinese = any("\u4e00" <= x <= "\u9fff" for prompt in prompts for x in prompt)
    results = None
    if scores:
        kind = source.partition(":")[0]
        results = [hub().EvalResult("text-to-image", kind, source, "alignment", scores["alignment"])]
    header = hub().ModelCardData(
        license=licence,
        library_name="dallegan",
        pipeline_tag="text-to-image",
        language=["en", "zh"] if chinese else ["en"],
        tags=["jax", "flax", "gan"],
        model_name=title,
        eval_results=results,
    )
    table = "\n".join(f"| {key} | {value} |" for key, value in facts(model, scores).items())
    prompt = json.dumps(prompts[0], ensure_ascii=False).replace("`", "\\u0060")  # would end the block of code
    fields = {"header": header.to_yaml(), "prompt": prompt, "size": config.data.size, "table": table}
    return CARD.format(title=plain(title), name=plain(name), **fields)


def plain(value: str) -> str:
    """Returns a value for a model card: one line, which is neither HTML nor Markdown."""
    return re.sub(r"[`|*\[\]\\<>&\"]", lambda mark: f"&#{ord(mark[0])};", shown(value, 200))


def facts(model: Model, scores: dict[str, float]) -> dict[str, str]:
    """Returns the rows of the card's table."""
    config, size = model.config, model.tokenizer.size
    count = {part: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for part, tree in model.params.items()}
    gamma = config.loss.gamma
    tokens = f", up to {config.text.length - 1} tokens of a vocabulary of {size}" if size else ""
    rows = {
        "images": f"{config.data.size}×{config.data.size} pixels",
        "parameters": f"encoder, generator and decoder {count['generator']:.1f} M, "
        f"discriminator {count['discriminator']:.1f} M; bfloat16",
        "caption": f"encoder `{config.text.encoder}`{tokens}",
        "data": f"<code>{plain(config.data.source)}</code>",
        "budget": f"{config.steps} steps of {config.batch} images",
        "loss": f"`{config.loss.adversarial}`" + f" with R1 and R2, γ {gamma[0]} to {gamma[1]}" * any(gamma),
    }
    if scores:
        rows["alignment while training"] = f"{scores['alignment']:.3f} after {scores['images']:,} images"
    return rows | {"model hash": f"`{model.digest}`"}


def main(argv: Sequence[str]) -> None:
    """Parses the command line, and downloads or uploads."""
    args = parse(Command, "dallegan hub", args=argv, description=__doc__)  # type: ignore[arg-type]  # a union
    if isinstance(args, Download):
        download(args)
    else:
        upload(args)
