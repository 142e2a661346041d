"""Speed of the data: every source through the pipeline that training uses, and one core's decoding of JPEGs for large pictures.

python benchmarks/data_speed.py [--demand IMAGES_PER_SECOND] > benchmarks/results/data_speed.json

A v5e-256 is fed by hosts: how many of --cores cores each it would need is arithmetic, from the rate per core that is measured here and the images a
second that it is assumed to train on; nothing is measured there.
"""

import contextlib
import dataclasses
import io
import json
import math
import pathlib
import sys
import tarfile
import tempfile
import time

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from dallegan.commands import prepare
from dallegan.config import Config, load_preset
from dallegan.data.pipeline import make_batches, make_dataset, make_source, make_tokenizer
from dallegan.data.storybook.scenes import Storybook
from dallegan.io.cli import parse, run
from dallegan.io.image import read_image
from dallegan.run.machine import about

PICTURES = 1000  # of 256 px, in each kind of file


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the sources."""

    seconds: float = 5.0  # of each measurement
    demand: int = 20_000  # images a second that a v5e-256 is assumed to train on at 256 px
    cores: int = 16  # of a host that feeds it


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The same pictures as a TensorFlow Dataset."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    files: pathlib.Path

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(encoding_format="jpeg"), "text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(self.files.glob("*.jpg")):
            yield path.name, {"image": io.BytesIO(path.read_bytes()), "text": path.with_suffix(".txt").read_text()}


def write(folder: pathlib.Path, size: int) -> dict[str, str]:
    """The same pictures for each source that reads files: {name: data.source}."""
    files, story = folder / "files", Storybook(256)
    files.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i in range(PICTURES):
            example = story.example(i)
            Image.fromarray(example.image).save(files / f"{i:05d}.jpg", quality=90)
            (files / f"{i:05d}.txt").write_text(example.caption)
            for suffix in ("jpg", "txt"):
                tar.add(files / f"{i:05d}.{suffix}", f"{i:05d}.{suffix}")
    Pictures.files = files
    Pictures(data_dir=folder, file_format="array_record").download_and_prepare()
    job = prepare.start_job(prepare.Args(f"folder:{files}", str(folder / "made"), size), (folder / "made").mkdir() or folder / "made")
    prepare.write_shards(job)
    return {
        "folder, from its memory": f"folder:{files}", "webdataset of 256 px JPEGs": f"webdataset:{folder}/00000.tar",
        "tfds of 256 px JPEGs": f"tfds:pictures?data_dir={folder}", f"arrayrecord of {size} px PNGs": f"arrayrecord:{folder}/made",
    }  # fmt: skip


def rate(config: Config, seconds: float) -> float:
    """Images a second in batches, after the first ones."""
    source = make_source(config)
    batches = make_batches(make_dataset(source, make_tokenizer(source, config), config), config, 0)
    for _ in range(config.data.prefetch + 1):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["image"])
    return round(count / (time.perf_counter() - start), 1)


def decode_rate(stored: int, size: int, seconds: float) -> float:
    """JPEGs of stored x stored pixels (quality 95, full colour, photographic noise) to `size` px, a second on one core."""
    story, rng = Storybook(min(stored, 512)), np.random.default_rng(0)
    files = []
    for i in range(20):
        image = np.asarray(Image.fromarray(story.example(i).image).resize((stored, stored)), np.float32) + rng.normal(0, 8, (stored, stored, 3))
        file = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95, subsampling=0)
        files.append(file.getvalue())
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        read_image(files[count % len(files)], size)
        count += 1
    return round(count / (time.perf_counter() - start), 1)


def main() -> None:
    """Measures and prints JSON."""
    args, config = parse(Args, "benchmarks/data_speed.py"), load_preset("quickstart")
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab=4096))  # the names of emoji have more than 1,024 characters
    size, threads = config.data.size, config.data.threads
    through: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # TFDS prints
        sources = {"storybook": "storybook", "emoji": "emoji"} | write(pathlib.Path(folder), size)
        for name, source in sources.items():
            through[name] = rate(dataclasses.replace(config, data=dataclasses.replace(config.data, source=source)), args.seconds)
    core = {f"{stored} px to 256 px": decode_rate(stored, 256, args.seconds) for stored in (256, 512, 1024)}
    prepared = core["256 px to 256 px"]
    hosts = math.ceil(args.demand / (args.cores * prepared))
    result = {
        f"images_per_second_through_the_pipeline_at_{size}_px_{threads}_threads": through,
        "jpegs_per_second_on_one_core": core,
        "v5e_256": {
            "assumed_images_per_second": args.demand, "cores_of_a_host": args.cores, "hosts_needed": hosts,
            "arithmetic": f"{args.demand} / ({args.cores} cores x {prepared} prepared 256 px JPEGs/s a core) = {args.demand / (args.cores * prepared):.2f}",
        },
    }  # fmt: skip
    print(json.dumps(about() | result, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
