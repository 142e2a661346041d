"""Writes some hundred Twemoji (CC-BY-4.0; extra `emoji`) out as a folder of captioned pictures, a small data set to train on.

python benchmarks/emoji_folder.py OUT [--n N]
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from typing import Annotated

import tyro

from dallegan.data.emoji import concepts
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.io.files import write_atomic, writing


@dataclasses.dataclass(frozen=True)
class Args:
    """Write emoji (transparent: a folder's pictures are laid on white), their English and Chinese names as captions."""

    out: Annotated[pathlib.Path, tyro.conf.Positional]  # folder to make
    n: int = 400  # of 850, evenly spread over the alphabet


def main() -> None:
    """Writes the pictures and metadata.jsonl."""
    args = parse(Args, "emoji_folder.py")
    if not 0 < args.n <= len(concepts()):
        raise UserError(f"--n {args.n}: from 1 to {len(concepts())}")
    chosen = [concepts()[i * len(concepts()) // args.n] for i in range(args.n)]
    lines = [json.dumps({"file_name": c.path.name, "text": [c.english, c.chinese]}, ensure_ascii=False) for c in chosen]
    with writing(args.out / "metadata.jsonl"):
        for concept in chosen:
            shutil.copyfile(concept.path, args.out / concept.path.name)
        write_atomic(args.out / "metadata.jsonl", "\n".join(lines) + "\n")
    print(f"{args.n} pictures in {args.out}")


if __name__ == "__main__":
    sys.exit(run(main))
