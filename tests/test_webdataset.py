"""Tar shards: the right image and captions by offset, whatever the shard is like; names are only keys."""

import importlib.util
import io
import json
import tarfile
import threading

import numpy as np
import pytest
from conftest import assert_processes_agree, faulty, tiny
from PIL import Image

from dallegan.data.file_source import FileCache
from dallegan.data.webdataset import WebDataset, find
from dallegan.errors import TransientError, UserError
from dallegan.io.image import ImageError, read_image


def image_file(i, kind="PNG", size=20):
    """Returns an image file, a different one for each i."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 255, (size, size + 4, 3), np.uint8)).save(file, kind)
    return file.getvalue()


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(i, kind="jpg"):
    """Returns the members of one image, as img2dataset writes them."""
    about = json.dumps({"caption": f"caption {i}", "url": "x", "key": f"{i:05d}"}).encode()
    return [
        (f"{i:05d}.{kind}", image_file(i, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[kind])),
        (f"{i:05d}.txt", f"caption {i}".encode()),
        (f"{i:05d}.json", about),
    ]


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        members = [m for i in range(4) for m in sample(4 * shard + i, ("jpg", "png", "webp")[shard])]
        write_tar(
            tmp_path / f"{shard:05d}.tar",
            members,
            format=(tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[shard],
        )
    (tmp_path / "00000_stats.json").write_text("{}")
    return tmp_path


def test_reading_by_offset_equals_reading_with_tarfile(shards):
    source = WebDataset(str(shards), 16)
    plain = []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar}
        plain += [
            (f"{path.name}:{n}", files[n], files[n.split(".")[0] + ".txt"].decode())
            for n in files
            if not n.endswith(("txt", "json"))
        ]
    assert len(source) == len(plain) == 12
    for i, (name, data, text) in enumerate(plain):
        assert (source.name(i), source.part(i, "image"), source.captions_of(i)) == (name, data, [text])
        np.testing.assert_array_equal(source.load(i)[0], read_image(data, 16))
    assert not source.skipped
    assert source.index.itemsize == 40


@pytest.mark.parametrize("pattern", ["{}", "{}/*.tar", "{}/{{00000..00002}}.tar", "{}/0000[0-2].tar"])
def test_patterns(shards, pattern):
    assert find(pattern.format(shards)) == [str(shards / f"0000{i}.tar") for i in range(3)]


def test_in_a_bucket(shards):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    here, there = WebDataset(str(shards), 16), WebDataset("memory://bucket/{00000..00002}.tar", 16)
    np.testing.assert_array_equal(here.index, there.index)
    for i in range(12):
        assert there.part(i, "image") == here.part(i, "image")
        assert there.captions_of(i) == here.captions_of(i)
    assert len(find("memory://bucket")) == len(find("memory://bucket/*.tar")) == 3
    memory.rm("/bucket", recursive=True)
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match=r"12 images in a row cannot be read.*FileNotFoundError"):
        there.example(0, rng)
    with pytest.raises(UserError, match=r"cannot read none://b/a.tar: is fsspec's package for it installed"):
        WebDataset("none://b/a.tar", 16)
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(UserError, match=r"cannot read gs://b/a.tar: pip install 'dallegan\[gcs\]'"):
            WebDataset("gs://b/a.tar", 16)


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ([("a.txt", b"one\n\n two \n")], ["one", "two"]),
        ([("a.json", b'{"caption": "one", "text": ["two", 3, null, "one"]}')], ["one", "two"]),
        ([("a.txt", b"\xef\xbb\xbfone"), ("a.json", b'{"caption": ["one", "three"]}')], ["one", "three"]),
        ([("a.txt", b"one"), ("a.json", b"not json")], ["one"]),
        ([("a.txt", "棕熊".encode()), ("a.json", b"[1]")], ["棕熊"]),
        ([("a.json", b'{"text": "\\ud800 bear"}')], ["? bear"]),
    ],
)
def test_captions(tmp_path, members, captions):
    write_tar(tmp_path / "a.tar", [*members, ("a.JPG", image_file(0))])
    source = WebDataset(str(tmp_path), 16)
    assert source.captions_of(0) == source.captions(9) == captions
    assert source.prompts() == captions[:1]


def test_what_cannot_be_used_is_skipped_and_named(tmp_path):
    good = sample(0)
    write_tar(
        tmp_path / "a.tar",
        [
            *good,
            ("silent.jpg", image_file(1)),
            ("blind.txt", b"x"),
            ("00000.png", image_file(2)),
            ("e.jpg", b""),
            ("e.txt", b"x"),
        ],
    )
    whole = write_tar(tmp_path / "cut.tar", sample(1) + sample(2)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"00002.jpg") + 600])
    (tmp_path / "damaged.tar").write_bytes(
        whole.replace(b"00002.jpg", b"00002/jpg", 1)
    )  # its header's checksum
    (tmp_path / "text.tar").write_text("no tar " * 200)
    (tmp_path / "empty.tar").touch()
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz"):
        pass
    source = WebDataset(str(tmp_path / "{a,cut,damaged,text,empty,gone}.tar"), 16)
    reasons = {
        "a.tar:silent": "no caption",
        "a.tar:blind": "no image",
        "a.tar:00000.png": "00000 has another image",
        "a.tar:e.jpg": "0 bytes",
        "a.tar:e": "no image",
        "cut.tar:00002.jpg": "truncated",
        "cut.tar": "unexpected end of data; 1 names",
        "damaged.tar": "truncated or damaged; 1 names",
        "text.tar": "ReadError",
        "empty.tar": "ReadError: empty file",
        "gone.tar": "No such file",
    }
    assert [source.captions_of(i)[0] for i in range(len(source))] == ["caption 0", "caption 1", "caption 1"]
    assert {k: v for k, v in reasons.items() if v not in source.skipped.get(k, "")} == {}
    with pytest.raises(UserError, match=r"no captioned images in .*gunzip"):
        WebDataset(str(tmp_path / "*.gz"), 16)
    with pytest.raises(UserError, match="no tar files in"):
        WebDataset(str(tmp_path / "*.zip"), 16)
    with pytest.raises(UserError, match=r"no tar files in webdataset:.*gone/\*.tar: name a folder"):
        find(str(tmp_path / "{.,gone}/*.tar"))
    with pytest.raises(UserError, match="more than 1000000 files"):
        WebDataset("{0..9999999}.tar", 16)


def test_a_hostile_tar_writes_nothing_and_ends(tmp_path):
    (tmp_path / "in").mkdir()
    names = ("../escaped", "/tmp/dallegan-escaped", "a/../../b")
    write_tar(
        tmp_path / "in" / "a.tar",
        [(f"{n}.{s}", d) for n in names for s, d in (("png", image_file(0)), ("txt", b"x"))],
    )
    back = tarfile.TarInfo("z.txt")
    back.pax_headers = {"size": "-2048"}  # leads back to the first header
    (tmp_path / "in" / "b.tar").write_bytes(back.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    before = sorted(tmp_path.rglob("*"))
    source = WebDataset(str(tmp_path / "in"), 16)
    assert [source.example(i, np.random.default_rng(0)).caption for i in range(3)] == ["x"] * 3
    assert source.name(0) == "a.tar:../escaped.png"
    assert "backwards" in source.skipped["b.tar"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_header_of_a_terabyte_is_one_damaged_shard(tmp_path):
    write_tar(tmp_path / "a.tar", sample(0))
    write_tar(tmp_path / "b.tar", sample(1))
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**42
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(
        whole[: whole.rindex(b"caption 1") // 512 * 512 + 512]
        + header.tobuf(tarfile.GNU_FORMAT)
        + bytes(1024)
    )
    source = WebDataset(str(tmp_path), 16)
    assert len(source) == 2
    assert source.skipped == {"b.tar": f"damaged: a header of {2**42} bytes; 1 names before"}


def test_unreadable_images_give_way_to_the_next_and_processes_agree(tmp_path):
    members = [m for i in range(8) for m in sample(i)]
    members[6] = ("00002.jpg", b"broken")
    members[15:18] = [("00005.jpg", image_file(5)), ("00005.json", b"{}")]
    write_tar(tmp_path / "a.tar", members)
    source = WebDataset(str(tmp_path), 16)
    first = source.example(2, np.random.default_rng(1))
    np.testing.assert_array_equal(first.image, source.load(3)[0])
    assert first.caption == "caption 3"
    assert all(
        e.caption != e.negative for e in (source.example(i, np.random.default_rng(9 * i)) for i in range(8))
    )
    with pytest.raises(ImageError) as error:
        read_image(b"broken", 16)
    assert source.skipped == {"a.tar:00002.jpg": str(error.value), "a.tar:00005.jpg": "no caption"}
    config = tiny(data__source=f"webdataset:{tmp_path}", data__flip=True, batch=8)
    assert_processes_agree(config)


def test_a_dropped_file_stays_readable_and_the_rest_are_few(tmp_path):
    closed, opened = [], FileCache(lambda path: Handle(path), most=2)

    class Handle:
        def __init__(self, path):
            self.path = path

        def __del__(self):
            closed.append(self.path)

    kept = opened.get("a")
    threads = [threading.Thread(target=lambda i=i: opened.get(str(i))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (kept.path, len(closed)) == ("a", 18)


def test_a_shard_with_a_passing_error_is_not_skipped(tmp_path, monkeypatch):
    import fsspec

    write_tar(tmp_path / "a.tar", sample(0))
    faulty(tmp_path / "b.tar")
    with pytest.raises(
        TransientError, match=r"^cannot read .*b.tar: \[Errno 5\] Input/output error; try again$"
    ):
        WebDataset(str(tmp_path), 16)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())

    def busy(*args, **options):
        raise RuntimeError("503")  # a bucket's own error, which is no OSError

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "_open", busy)
        with pytest.raises(
            TransientError, match=r"^cannot read memory://bucket/a.tar: RuntimeError: 503; try again$"
        ):
            WebDataset("memory://bucket/a.tar", 16)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "isdir", busy)
        with pytest.raises(
            TransientError, match=r"^cannot read webdataset:memory://bucket: RuntimeError: 503$"
        ):
            WebDataset("memory://bucket", 16)

    def forbidden(*args, **options):
        raise OSError("Forbidden: https://bucket\nno access")  # gcsfs's own message

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "_open", forbidden)
        with pytest.raises(
            UserError, match=r"^no captioned images in .*OSError: Forbidden: https://bucket$"
        ) as error:
            WebDataset("memory://bucket/a.tar", 16)
    assert not isinstance(error.value, TransientError)
    try:
        assert len(WebDataset("memory://bucket/{a,gone}.tar", 16)) == 1
    finally:
        memory.rm("/bucket", recursive=True)


@pytest.mark.parametrize("size", [2**63 - 512 - 2560, 2**63 - 2048, 2**63 + 10])
def test_a_member_that_ends_where_no_file_does_is_one_damaged_shard(tmp_path, size):
    write_tar(tmp_path / "a.tar", sample(0))
    member = tarfile.TarInfo("z.jpg")
    member.size = size
    (tmp_path / "b.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    source = WebDataset(str(tmp_path), 16)
    assert (len(source), "b.tar" in source.skipped) == (1, True)
