"""Speed of the sources on one core.

python benchmarks/data_speed.py > benchmarks/results/data_speed.json
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from dallegan.cli import run
from dallegan.data.emoji import Emoji
from dallegan.data.folder import Folder
from dallegan.data.source import Source
from dallegan.data.storybook import Storybook
from dallegan.image import read_image
from dallegan.runtime import about


def rate(source: Source, seconds: float = 3.0) -> float:
    """Examples a second."""
    rng = np.random.default_rng(0)
    source.example(0, rng)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        source.example(count % len(source), rng)
        count += 1
    return round(count / (time.perf_counter() - start), 1)


def main() -> None:
    """Measures and prints JSON."""
    result: dict[str, float] = {}
    for size in (32, 64, 256):
        result[f"storybook {size} px, 1 object"] = rate(Storybook(size))
        result[f"storybook {size} px, 1 or 2 objects"] = rate(Storybook(size, objects=2))
    for size in (32, 64):
        result[f"emoji {size} px"] = rate(Emoji(size))
    with tempfile.TemporaryDirectory() as folder:
        story = Storybook(512)
        for i in range(50):
            Image.fromarray(story.example(i).image).save(f"{folder}/{i}.jpg", quality=90)
            with open(f"{folder}/{i}.txt", "w") as file:
                file.write(story.example(i).caption)
        files = sorted(pathlib.Path(folder).glob("*.jpg"))
        start = time.perf_counter()
        for file in 4 * files:
            read_image(file, 64)
        result["folder of 512 px JPEGs, to 64 px, first time"] = round(4 * len(files) / (time.perf_counter() - start), 1)
        result["folder, from its memory"] = rate(Folder(folder, 64))
    print(json.dumps(about() | {"images_per_second_on_one_core": result}, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
