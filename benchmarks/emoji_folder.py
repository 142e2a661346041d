"""Writes some hundred Twemoji (CC-BY-4.0; extra `emoji`) out as a folder of captioned pictures, a small data set to train on.

python benchmarks/emoji_folder.py OUT [--n N]
"""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated

import tyro
from PIL import Image

from dallegan.cli import parse, run
from dallegan.data.emoji import concepts
from dallegan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Args:
    """Write emoji on white, their English and Chinese names as captions."""

    out: Annotated[pathlib.Path, tyro.conf.Positional]  # folder to make
    n: int = 400  # of 850, evenly spread over the alphabet


def main() -> None:
    """Writes the pictures and metadata.jsonl."""
    args = parse(Args, "emoji_folder.py")
    if not 0 < args.n <= len(concepts()):
        raise UserError(f"--n {args.n}: from 1 to {len(concepts())}")
    args.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(args.n):
        concept = concepts()[i * len(concepts()) // args.n]
        with Image.open(concept.path) as image:
            picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        white.convert("RGB").save(args.out / f"{i:03}.png")
        lines.append(json.dumps({"file_name": f"{i:03}.png", "text": [concept.english, concept.chinese]}, ensure_ascii=False))
    (args.out / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{args.n} pictures in {args.out}")


if __name__ == "__main__":
    sys.exit(run(main))
