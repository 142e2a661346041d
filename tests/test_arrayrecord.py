"""What prepare writes is read back. A damaged manifest is one error, a damaged record a skipped image."""

import json
import os
import pickle

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from conftest import assert_processes_agree, tiny
from test_webdataset import image_file

from dallegan.data.arrayrecord import ArrayRecord
from dallegan.data.pipeline import make_source
from dallegan.errors import UserError
from dallegan.io.image import read_image

BAD = (
    msgpack.packb([1]),
    b"\xc1",
    msgpack.packb({"image": "text", "captions": ["x"]}),
    msgpack.packb({"image": b"x", "captions": [1, " "]}),
)


def write(folder, records, per=4):
    """Writes shards of `per` records each, and their manifest; each record as it is."""
    shards = []
    for start in range(0, len(records), per):
        path = folder / f"data-{start // per:05d}-of-{-(-len(records) // per):05d}.array_record"
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for record in records[start : start + per]:
            writer.write(record)
        writer.close()
        shards.append(
            {
                "name": path.name,
                "pictures": len(records[start : start + per]),
                "bytes": path.stat().st_size,
                "sha256": "",
            }
        )
    about = {
        "version": 1,
        "source": "x",
        "size": 16,
        "vocab": 600,
        "pictures": len(records),
        "shards": shards,
    }
    (folder / "manifest.json").write_text(json.dumps(about))
    return about


def record(i):
    return msgpack.packb({"image": image_file(i), "captions": [f"caption {i}", f"{i} again"]})


def test_records_by_place_and_another_size(tmp_path):
    write(tmp_path, [record(i) for i in range(10)])
    source = pickle.loads(pickle.dumps(ArrayRecord(str(tmp_path), 8)))
    for i in (9, 0, 3, 4, 7, 8):
        image, texts = source.load(i)
        np.testing.assert_array_equal(image, read_image(image_file(i), 8))
        assert texts == [f"caption {i}", f"{i} again"]
    assert source.captions(2) == ["caption 0", "0 again", "caption 1", "1 again"]
    assert source.name(9) == "data-00002-of-00003.array_record:1"


def test_bad_records_give_way_and_processes_agree(tmp_path):
    write(tmp_path, [BAD[i // 2] if i % 2 and i < 8 else record(i) for i in range(12)])
    config = tiny(data__source=f"arrayrecord:{tmp_path}", text__vocab=500)
    assert_processes_agree(config)
    source = make_source(config)
    for i in range(12):
        source.example(i, np.random.default_rng(0))
    np.testing.assert_array_equal(source.example(5, np.random.default_rng(0)).image, source.load(6)[0])
    assert sorted(source.skipped) == [
        f"data-0000{i // 4}-of-00003.array_record:{i % 4}" for i in (1, 3, 5, 7)
    ]


def test_a_thousand_unreadable_in_a_row_end_the_run(tmp_path):
    write(tmp_path, [record(0), *[b"\xc1"] * 1200], per=2000)
    with pytest.raises(
        UserError,
        match=r"1000 images in a row cannot be read, the last data-00000-of-00001.array_record:1000: damaged",
    ):
        ArrayRecord(str(tmp_path), 16).example(1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda about: "{", "is damaged: not a JSON object"),
        (lambda about: "[" * 100_000, "is damaged: not a JSON object"),
        (lambda about: "[]", "is damaged: not a JSON object"),
        (lambda about: about | {"skipped": ["x"]}, "is damaged, or not one"),
        (lambda about: about | {"skipped": {"x": None}}, "is damaged, or not one"),
        (lambda about: "{}", "is damaged, or not one"),
        (lambda about: about | {"version": 2}, "is of version 2, newer than this dallegan reads"),
        (lambda about: about | {"pictures": 9}, "its shards do not add up to 9 images"),
        (lambda about: about | {"pictures": True}, "is damaged, or not one"),
        (lambda about: about | {"shards": [7]}, "'7' is no shard"),
        (
            lambda about: about | {"shards": [about["shards"][0] | {"name": "../../etc/passwd"}]},
            "is no shard",
        ),
        (lambda about: about | {"shards": [about["shards"][0] | {"pictures": -1}]}, "is no shard"),
        (
            lambda about: about | {"shards": [about["shards"][0] | {"name": "data-0-of-1.array_record"}]},
            "data-0-of-1.array_record is missing",
        ),
        (
            lambda about: about | {"shards": [about["shards"][0] | {"bytes": 9}]},
            "is damaged: of another size",
        ),
        (lambda about: about | {"shards": [], "pictures": 0}, "holds no images"),
    ],
)
def test_manifests(tmp_path, change, message):
    changed = change(write(tmp_path, [record(0)]))
    (tmp_path / "manifest.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(UserError, match=message) as error:
        ArrayRecord(str(tmp_path), 16)
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest.json: not a regular file"):
        ArrayRecord(str(tmp_path), 16)


def test_brackets_in_a_path_and_the_home_of_nobody(tmp_path):
    (folder := tmp_path / "set [v1] {a,b}*").mkdir()
    write(folder, [record(0)])
    assert ArrayRecord(str(folder), 16).captions_of(0) == ["caption 0", "0 again"]
    with pytest.raises(UserError, match=r"^~nobody-at-all/x: there is no such user"):
        ArrayRecord("~nobody-at-all/x", 16)


def test_elsewhere(tmp_path):
    with pytest.raises(UserError, match=r"a folder that `dallegan prepare SRC DIR` has finished"):
        ArrayRecord(str(tmp_path), 16)
    with pytest.raises(UserError, match=r"gs://b/x is an address, not a path on a disk; mount the bucket"):
        ArrayRecord("gs://b/x", 16)


def test_a_shard_that_is_away_is_read_again_once_it_is_back(tmp_path):
    write(tmp_path, [record(0)])
    source, shard = ArrayRecord(str(tmp_path), 16), tmp_path / "data-00000-of-00001.array_record"
    shard.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"^open\(\) failed: No such file or directory; opening .*array_record"):
        source.captions_of(0)
    with pytest.raises(
        UserError,
        match=r"cannot read the captions of data-.*array_record:0: open\(\) failed: .*; try again$",
    ):
        source.captions(1)
    (tmp_path / "away").rename(shard)
    assert source.captions(1) == ["caption 0", "0 again"]
