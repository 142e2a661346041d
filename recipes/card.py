"""Writes the card of a trained model, README.md in the model's folder, with what was measured.

python recipes/card.py MODEL EVALUATION.json
"""

import json
import pathlib
import sys
from dataclasses import dataclass

import jax
import tyro

import dallegan
from dallegan.commands.evaluate import table
from dallegan.errors import UserError
from dallegan.io.cli import parse, run
from dallegan.io.files import write_atomic, writing

CARD = """---
license: apache-2.0
language: [en, zh]
pipeline_tag: text-to-image
tags: [jax, flax, gan]
---

# {name}

A text-to-image GAN trained with [dallegan](https://github.com/dallegan/dallegan): one forward pass from a
caption to an image of {size}×{size} pixels.

```python
import dallegan

model = dallegan.load("{name}")
images = model.sample(["一只棕色的大熊站在雪地里"], n=4, seed=0)  # uint8 [4, {size}, {size}, 3]
```

| | |
|---|---|
| parameters | encoder, generator, decoder {generator:.1f} M; discriminator {discriminator:.1f} M; bfloat16 |
| captions | up to {tokens} tokens of a vocabulary of {vocabulary} |
| data | `{source}` |
| model hash | `{digest}` |

## Measured

`{command}`, {date}, {device}:

```text
{table}
```
"""


@dataclass(frozen=True)
class Args:
    """Write a model's card."""

    model: tyro.conf.Positional[pathlib.Path]  # folder that `Model.save` wrote
    evaluation: tyro.conf.Positional[pathlib.Path]  # what `dallegan evaluate --json` wrote about the model


def main() -> None:
    """Parses the command line and writes README.md."""
    args = parse(Args, "recipes/card.py")
    try:
        report = json.loads(args.evaluation.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {args.evaluation}: {error}") from None
    model = dallegan.load(args.model)
    millions = {
        player: sum(x.size for x in jax.tree.leaves(tree)) / 1e6 for player, tree in model.params.items()
    }
    text = CARD.format(
        name=args.model.name,
        size=model.config.data.size,
        tokens=model.config.text.length - 1,
        vocabulary=model.tokenizer.size,
        source=model.config.data.source,
        digest=model.digest,
        table=table(report),
        command=report["command"],
        date=report["date"],
        device=report["device"],
        **millions,
    )
    with writing(args.model / "README.md"):
        write_atomic(args.model / "README.md", text)
    print(args.model / "README.md")


if __name__ == "__main__":
    sys.exit(run(main))
