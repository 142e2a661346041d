"""TensorFlow Datasets: two are defined and prepared here, without TensorFlow, and read back."""

import contextlib
import io
import json
import shutil
import sys
from typing import ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import tiny
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.dataset_info import DatasetInfoFileError
from test_webdataset import image_file

from dallegan.data.file_source import UnusableRecord
from dallegan.data.pipeline import make_dataset, make_source, make_tokenizer
from dallegan.data.tfds import Tfds, find_prepared
from dallegan.errors import UserError
from dallegan.io.image import read_image


class Toy(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None
    FEATURES: ClassVar = {
        "image": tfds.features.Image(encoding_format="png"),
        "image/filename": tfds.features.Text(),
        "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
        "about": tfds.features.FeaturesDict({"thumb": tfds.features.Image(), "text": tfds.features.Text()}),
        "label": tfds.features.ClassLabel(names=["polar_bear", "cat"]),
    }

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.FEATURES))

    def _split_generators(self, _):
        return {"train": self._generate_examples(8), "few": self._generate_examples(2)}

    def _generate_examples(self, n):
        for i in range(n):
            captions = [] if i == 5 else [{"text": f"caption {i} {j}", "id": j} for j in range(i % 3 + 1)]
            about = {"thumb": io.BytesIO(image_file(100 + i)), "text": f"about {i}"}
            every = {
                "image": io.BytesIO(image_file(i)),
                "image/filename": "x",
                "captions": captions,
                "about": about,
                "label": i % 2,
            }
            yield i, {key: every[key] for key in self.FEATURES}


class Labelled(Toy):
    FEATURES: ClassVar = {key: Toy.FEATURES[key] for key in ("image", "image/filename", "label")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    for builder in (Toy, Labelled):
        builder(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules
    return folder


def read(folder, spec="toy", **options):
    query = "&".join(f"{key}={value}" for key, value in (options | {"data_dir": folder}).items())
    return Tfds(f"{spec}?{query}", 16)


def rows(source):
    """Yields captions and image of each record that has a caption."""
    for i in range(len(source)):
        with contextlib.suppress(UnusableRecord):
            yield source.captions_of(i), source.load(i)[0]


def test_images_and_captions(folder):
    source = read(folder)
    found = {int(texts[0].split()[1]): (texts, image) for texts, image in rows(source)}
    assert sorted(found) == [0, 1, 2, 3, 4, 6, 7]
    for i, (texts, image) in found.items():
        assert texts == [f"caption {i} {j}" for j in range(i % 3 + 1)]
        np.testing.assert_array_equal(image, read_image(image_file(i), 16))
    assert sorted(source.captions(9)) == sorted(text for texts, _ in found.values() for text in texts)
    assert list(source.skipped.values()) == ["no caption"]
    assert len(read(folder, "toy:1.0.0", split="few")) == 2
    assert len(read(folder, split="train[:25%]")) == 2
    assert read(folder, "labelled").captions(2)[0] in ("polar bear", "cat")
    assert read(folder, text="label").captions_of(0)[0] in ("polar bear", "cat")
    source = read(folder, text="about/text", image="about/thumb")
    for (text,), image in rows(source):
        np.testing.assert_array_equal(image, read_image(image_file(100 + int(text.split()[1])), 16))


def test_processes_agree(folder):
    config = tiny(data__source=f"tfds:toy?data_dir={folder}", batch=8)
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    whole = make_dataset(source, tokenizer, config)[1]
    for count in (2, 4):
        pieces = [make_dataset(make_source(config), tokenizer, config, i, count)[1] for i in range(count)]
        for key, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[key] for p in pieces]), value)


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("toyy", {}, r"no data set toyy in .*tfds build toyy --file_format=array_record"),
        ("toy:9.9.9", {}, "no data set toy:9.9.9"),
        ("toy/config", {}, "no data set toy/config"),
        ("../toy", {}, "no data set ../toy"),
        ("hub:toy", {}, "no data set hub:toy"),
        ("toy", {"split": "dev"}, r"Unknown split 'dev'.*few"),
        (
            "toy",
            {"image": "label"},
            r"no feature 'label' that can be the image. There are: .*about/thumb \(Image\), .*image \(Imag",
        ),
        ("toy", {"text": "image"}, "no feature 'image' that can be the text"),
        ("toy", {"colour": "1"}, "after the [?] goes split=... & image=... & text=... & data_dir=..."),
        ("toy", {"data_dir": "gs://bucket"}, "gs://bucket is an address, not a path on a disk"),
    ],
)
def test_errors_are_one_line(folder, spec, options, message):
    with pytest.raises(UserError, match=message) as error:
        read(folder, spec, **options) if "data_dir" not in options else Tfds(
            f"{spec}?data_dir=gs://bucket", 16
        )
    assert "\n" not in str(error.value)


def test_damaged_files(folder, tmp_path):
    shutil.copytree(folder / "toy", tmp_path / "toy")
    here = tmp_path / "toy" / "1.0.0"
    (about,), whole = here.glob("dataset_info.json"), (here / "dataset_info.json").read_bytes()
    for data, message in (
        (whole[:40], "Failed to load JSON"),
        (whole.replace(b"array_record", b"tfrecord"), "format without random access"),
    ):
        about.write_bytes(data)
        with pytest.raises(UserError, match=message):
            read(tmp_path)
    about.write_bytes(whole)
    (here / "toy-train.array_record-00000-of-00001").unlink()
    with pytest.raises(UserError, match="is missing"):
        read(tmp_path)


EVIL = {"type": "evil.Image", "content": {}}
FEATURES_DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
EVIL_PROTO = {"features": {"image": {"pythonClassName": "evil.Image"}}}


@pytest.mark.parametrize(
    "features",
    [
        EVIL,
        {"pythonClassName": "evil.Image"},
        {"python_class_name": "evil.Image"},
        {"pythonClassName": FEATURES_DICT, "featuresDict": EVIL_PROTO},
        {"pythonClassName": FEATURES_DICT, "jsonFeature": {"json": json.dumps({"image": EVIL})}},
        {
            "type": FEATURES_DICT,
            "content": json.dumps(EVIL_PROTO),
            "proto_cls": "tensorflow_datasets.FeaturesDict",
        },
    ],
)
def test_a_data_set_runs_no_code(folder, tmp_path, monkeypatch, features):
    """Not even if the class of a feature could be imported, in every form in which TFDS would import it."""
    shutil.copytree(folder / "toy", tmp_path / "toy")
    (tmp_path / "evil.py").write_text("raise SystemExit('this was run')")
    monkeypatch.syspath_prepend(tmp_path)
    about = tmp_path / "toy" / "1.0.0"
    (about / "features.json").write_text(json.dumps(features))
    with pytest.raises(SystemExit, match="this was run"):
        tfds.features.FeatureConnector.from_config(str(about))
    with pytest.raises(UserError, match=r"of the class evil\.Image, whose code would have to be run"):
        read(tmp_path)
    assert "evil" not in sys.modules
    assert len(read(folder)) == 8


def test_the_newest_version_of_the_default_configuration_is_found(tmp_path):
    for version in (
        "one/1.0.0",
        "one/1.10.0",
        "one/1.9.0",
        "one/2.0.0",
        "two/a/3.0.0",
        "two/b/1.0.0",
        "old/1.0.0",
    ):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "features.json").touch()
    (
        tmp_path / "old" / "1.0.0" / "features.json"
    ).unlink()  # prepared by a TFDS that did not write the features
    (tmp_path / "one" / "incomplete.XYZ_3.0.0").mkdir()
    (tmp_path / "two" / ".config").mkdir()
    (tmp_path / "two" / ".config" / "metadata.json").write_text('{"default_config_name": "b"}')
    cases = {
        "one": "one/2.0.0",
        "one:1.9.0": "one/1.9.0",
        "one:1.*.*": "one/1.10.0",
        "two": "two/b/1.0.0",
        "two/a": "two/a/3.0.0",
        "two/a:3.0.0": "two/a/3.0.0",
    }
    for name, found in cases.items():
        assert find_prepared(name, str(tmp_path)) == tmp_path / found
        # TFDS's own search agrees
        with pytest.raises(DatasetInfoFileError) as error:
            read_only_builder.builder_from_files(name, data_dir=str(tmp_path))
        assert str(tmp_path / found) in str(error.value)
    for name in ("old", "one:1.2.3", "one:latest", "two/c", "two:3.0.0", "three"):
        with pytest.raises(UserError, match=f"no data set {name} in "):
            find_prepared(name, str(tmp_path))


def test_a_missing_file_is_not_taken_for_a_damaged_record(folder, tmp_path):
    shutil.copytree(folder / "toy", tmp_path / "toy")
    source = read(tmp_path)
    file = next((tmp_path / "toy" / "1.0.0").glob("toy-train*"))
    file.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"^open\(\) failed: No such file or directory"):
        source.captions_of(0)
    (tmp_path / "away").rename(file)
    assert len(list(rows(source))) == 7
