"""Speed of the data: every source through the pipeline of training, and one core's decoding of large JPEGs.

python benchmarks/data_speed.py [--demand IMAGES_PER_SECOND] > benchmarks/results/data_speed.json

The hosts that a v5e-256 needs are arithmetic, not a measurement: the images per second that it is assumed to
train on, divided by the cores of a host times the rate per core that is measured here.
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

IMAGES = 1000  # of 256 px, in each kind of file


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the sources."""

    seconds: float = 5.0  # of each measurement
    demand: int = 20_000  # images per second that a v5e-256 is assumed to train on at 256 px
    cores: int = 16  # of a host


class Pictures(tfds.core.GeneratorBasedBuilder):
    """The same images as a TensorFlow Dataset."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    files: pathlib.Path

    def _info(self) -> tfds.core.DatasetInfo:
        features = {"image": tfds.features.Image(encoding_format="jpeg"), "text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for path in sorted(self.files.glob("*.jpg")):
            text = path.with_suffix(".txt").read_text()
            yield path.name, {"image": io.BytesIO(path.read_bytes()), "text": text}


def write(folder: pathlib.Path, size: int) -> dict[str, str]:
    """Writes the same images for each source that reads files, and returns {name: data.source}."""
    files, story = folder / "files", Storybook(256)
    files.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i in range(IMAGES):
            example = story.example(i)
            Image.fromarray(example.image).save(files / f"{i:05d}.jpg", quality=90)
            (files / f"{i:05d}.txt").write_text(example.caption)
            for suffix in ("jpg", "txt"):
                tar.add(files / f"{i:05d}.{suffix}", f"{i:05d}.{suffix}")
    Pictures.files = files
    Pictures(data_dir=folder, file_format="array_record").download_and_prepare()
    prepare.main([f"folder:{files}", str(folder / "made"), "--size", str(size)])
    return {
        "folder, from its memory": f"folder:{files}",
        "webdataset of 256 px JPEGs": f"webdataset:{folder}/00000.tar",
        "tfds of 256 px JPEGs": f"tfds:pictures?data_dir={folder}",
        f"arrayrecord of {size} px PNGs": f"arrayrecord:{folder}/made",
    }


def rate(config: Config, seconds: float) -> float:
    """Returns images per second in batches, after the first three."""
    source = make_source(config)
    batches = make_batches(make_dataset(source, make_tokenizer(source, config), config), config, 0)
    for _ in range(3):
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["image"])
    return round(count / (time.perf_counter() - start), 1)


def decode_rate(stored: int, size: int, seconds: float) -> float:
    """Returns how many JPEGs of stored x stored pixels one core turns into `size` px per second.

    The JPEGs have quality 95, full colour and the noise of photographs.
    """
    story, rng = Storybook(min(stored, 512)), np.random.default_rng(0)
    files = []
    for i in range(20):
        image = np.asarray(Image.fromarray(story.example(i).image).resize((stored, stored)), np.float32)
        image += rng.normal(0, 8, image.shape)
        file = io.BytesIO()
        pixels = image.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
        files.append(file.getvalue())
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        read_image(files[count % len(files)], size)
        count += 1
    return round(count / (time.perf_counter() - start), 1)


def pod(demand: int, cores: int, rate: float) -> dict[str, int | str]:
    """Returns the hosts that a pod needs, with the arithmetic."""
    hosts = demand / (cores * rate)
    arithmetic = f"{demand} / ({cores} cores x {rate} prepared 256 px JPEGs/s a core) = {hosts:.2f}"
    return {
        "assumed_images_per_second": demand,
        "cores_of_a_host": cores,
        "hosts_needed": math.ceil(hosts),
        "arithmetic": arithmetic,
    }


def main() -> None:
    """Measures and prints JSON."""
    args, config = parse(Args, "benchmarks/data_speed.py"), load_preset("quickstart")
    # the names of emoji have more than 1,024 characters
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab=4096))
    size, threads = config.data.size, config.data.threads
    through: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # TFDS prints
        sources = {"storybook": "storybook", "emoji": "emoji"} | write(pathlib.Path(folder), size)
        for name, source in sources.items():
            data = dataclasses.replace(config.data, source=source)
            through[name] = rate(dataclasses.replace(config, data=data), args.seconds)
    core = {f"{stored} px to 256 px": decode_rate(stored, 256, args.seconds) for stored in (256, 512, 1024)}
    result = {
        f"images_per_second_through_the_pipeline_at_{size}_px_{threads}_threads": through,
        "jpegs_per_second_on_one_core": core,
        "v5e_256": pod(args.demand, args.cores, core["256 px to 256 px"]),
    }
    print(json.dumps(about() | result, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
