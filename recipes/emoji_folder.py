"""Writes a few hundred Twemoji (art under CC-BY-4.0; extra `emoji`) as a folder of captioned images.

python recipes/emoji_folder.py OUT [--n N]
"""

import json
import pathlib
import shutil
import sys
from dataclasses import dataclass

import tyro

from dallegan.data.emoji import concepts
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.io.files import write_atomic, writing


@dataclass(frozen=True)
class Args:
    """Write emoji, with their English and Chinese names as captions. A folder's images are laid on white."""

    out: tyro.conf.Positional[pathlib.Path]  # folder for the images
    n: int = 400  # emoji, of 850; evenly spread over the alphabet


def main() -> None:
    """Parses the command line and writes the images and metadata.jsonl."""
    args, all_concepts = parse(Args, "recipes/emoji_folder.py"), concepts()
    if not 0 < args.n <= len(all_concepts):
        raise UserError(f"--n {args.n}: must be from 1 to {len(all_concepts)}")
    chosen = [all_concepts[i * len(all_concepts) // args.n] for i in range(args.n)]
    rows = [
        {"file_name": concept.path.name, "text": [concept.english, concept.chinese]} for concept in chosen
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with writing(args.out / "metadata.jsonl"):
        for concept in chosen:
            shutil.copyfile(concept.path, args.out / concept.path.name)
        write_atomic(args.out / "metadata.jsonl", lines)
    print(f"{args.n} images in {args.out}")


if __name__ == "__main__":
    sys.exit(run(main))
