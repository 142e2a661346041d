"""Tar shards: the right image and captions by offset, whatever the shard is like; names are only keys."""

import importlib.util
import io
import json
import os
import tarfile
import threading

import fsspec
import numpy as np
import pytest
from conftest import assert_processes_agree, faulty, tiny
from PIL import Image

from dallegan.data.file_source import FileCache
from dallegan.data.pipeline import make_source
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
    assert source.index.itemsize == 44


@pytest.mark.parametrize("pattern", ["{}", "{}/*.tar", "{}/{{00000..00002}}.tar", "{}/0000[0-2].tar"])
def test_patterns(shards, pattern):
    assert find(pattern.format(shards)) == [str(shards / f"0000{i}.tar") for i in range(3)]


def test_in_a_bucket(shards):
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
        ([("a.json", b'{"caption": "one", "text": ["two", 3, null, "one"]}')], ["two", "3", "one"]),
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


MAC = b"\0\5\x16\7\0\2\0\0Mac OS X        "  # an AppleDouble file


@pytest.mark.parametrize("name", ["._{}", "__MACOSX/x/._{}", "__MACOSX/{}", ".AppleDouble/{}"])
@pytest.mark.parametrize("folder", ["", "./", "a/b/"])
def test_what_a_mac_adds_is_ignored(tmp_path, name, folder):
    members = [(f"{folder}.DS_Store", b"\0\0\0\1Bud1"), ("PaxHeaders.20361/00000.jpg", b"30 mtime=1")]
    for other, data in sample(0):
        members += [(folder + name.format(other), MAC), (folder + other, data)]
    write_tar(tmp_path / "a.tar", members)
    source = WebDataset(str(tmp_path), 16)
    assert source.captions(9) == ["caption 0"]
    assert source.skipped == {}


@pytest.mark.parametrize(
    ("names", "captions"),
    [
        (["a.input.jpg", "a.output.txt"], ["a.output.txt"]),
        (["x.y/a.input.jpg", "x.y/a.output.txt", "x.y/b.jpg", "x.y/b.c.txt"], None),  # b.jpg has the key b
        (["1.5.jpg", "1.5.txt", "1.6.jpg", "1.6.txt"], ["1.5.txt", "1.6.txt"]),
        (["a.jpg", "a.txt", "b.in.jpg", "b.out.txt"], ["a.txt"]),  # a tar has one kind of names
        (["IMG.1.jpg", "IMG.2.jpg", "IMG.3.txt"], None),  # not unique
        (["a.seg.png", "a.jpg", "a.txt"], ["a.txt"]),
        (["A.JFIF", "A.txt", "b.JPE", "b.txt", "c.jpeg", "c.TXT"], ["A.txt", "b.txt", "c.TXT"]),
    ],
)
def test_keys(tmp_path, names, captions):
    if captions is None and "IMG.1.jpg" not in names:
        captions = ["x.y/a.output.txt", "x.y/b.c.txt"]
    is_text = lambda name: name.lower().endswith("txt")
    write_tar(tmp_path / "a.tar", [(n, n.encode() if is_text(n) else image_file(0, "JPEG")) for n in names])
    if captions:
        source = WebDataset(str(tmp_path), 16)
        assert source.captions(9) == captions
        assert source.load(0)[0].shape == (16, 16, 3)
    else:
        with pytest.raises(
            UserError, match=r"no captioned images .* skipped: 2 x no caption \(a.tar:IMG.1, a.tar:IMG.2\)"
        ):
            WebDataset(str(tmp_path), 16)


def test_the_suffixes_of_a_tar_without_images_are_named(tmp_path):
    write_tar(
        tmp_path / "a.tar", [(f"{i}.{s}", b"x") for i in range(3) for s in ("img", "cap", "cls")[: i + 1]]
    )
    with pytest.raises(
        UserError, match=r"no image with a caption; it has .img \(3\), .cap \(2\), .cls \(1\) \(a.tar\)"
    ):
        WebDataset(str(tmp_path), 16)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_skipped_has_a_full_name_for_each_image(tmp_path, kind):
    """Also for Chinese names and long ones, and for shards of one name in two folders."""
    deep = "dir/" * (20 if kind == tarfile.USTAR_FORMAT else 60)
    names = [*"猫狗熊", "a\x1b[2J", *(deep + x for x in "abc")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        members = [(f"{n}.{s}", b"broken") for n in names for s in ("jpg", "txt")]
        write_tar(tmp_path / folder / "0.tar", [*members, *sample(0)], format=kind)
    source = WebDataset(str(tmp_path / "*" / "0.tar"), 16)
    for i in range(len(source)):
        source.example(i, np.random.default_rng(0))
    assert sorted(source.skipped) == sorted(f"{f}/0.tar:{n}.jpg" for f in "ab" for n in names)


@pytest.mark.parametrize(
    "about", [b'{"caption": null}', b"[1, 2]", b"null", b"not json", b"[" * 100_000, b"{}"]
)
def test_a_shard_with_one_usable_image_trains_on_it(tmp_path, about):
    bad = [(f"{i}.{s}", d) for i in (1, 2, 3) for s, d in (("jpg", image_file(i, "JPEG")), ("json", about))]
    write_tar(tmp_path / "a.tar", [*bad[:4], *sample(0), *bad[4:]])
    source = WebDataset(str(tmp_path), 16)
    for i in range(len(source)):
        example = source.example(i, np.random.default_rng(i))
        assert (example.caption, example.negative) == ("caption 0", "caption 0")
    assert set(source.skipped) == {f"a.tar:{i}.jpg" for i in (1, 2, 3)}


@pytest.mark.parametrize(
    ("name", "text", "encoding", "stored"),
    [
        ("a.txt", "eine Bärin\n一只熊", "", "utf-16"),
        ("a.json", '{"caption": ["eine Bärin", "一只熊"]}', "", "utf-16"),
        ("a.json", '{"caption": ["eine Bärin", "一只熊"]}', "", "utf-8-sig"),
        ("a.txt", "eine Bärin\r\n一只熊\r\n", "gb18030", "gb18030"),
        ("a.txt", "eine Bärin\n一只熊", "gb18030", "utf-8-sig"),
        ("a.txt", "eine Bärin\n一只熊", None, "gb18030"),
        ("a.json", '{"caption": ["eine Bärin"]}', None, "latin-1"),
        ("a.txt", "eine Bärin", None, "utf-16-le"),
    ],
)
def test_encodings(tmp_path, name, text, encoding, stored):
    """None: refused, and the image is named."""
    write_tar(tmp_path / "a.tar", [("a.jpg", image_file(1)), (name, text.encode(stored)), *sample(0)])
    source = make_source(tiny(data__source=f"webdataset:{tmp_path}", data__encoding=encoding or ""))
    captions = ["eine Bärin", "一只熊"] if encoding is not None else []
    assert source.captions(9) == [*captions, "caption 0"]
    assert set(source.skipped) == (set() if captions else {"a.tar:a.jpg"})


def test_a_path_that_exists_is_taken_literally(tmp_path):
    (folder := tmp_path / "set [v1] {a,b}? *").mkdir()
    write_tar(folder / "0[1].tar", sample(0))
    write_tar(folder / "01.tar", sample(1))
    assert find(str(folder)) == [str(folder / "01.tar"), str(folder / "0[1].tar")]
    assert find(str(folder / "0[1].tar")) == [str(folder / "0[1].tar")]
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket [1]/0[1].tar", (folder / "01.tar").read_bytes())
    try:
        assert find("memory://bucket [1]") == ["memory:///bucket [1]/0[1].tar"]
        assert find("memory://bucket [1]/0[1].tar") == ["memory://bucket [1]/0[1].tar"]
        assert WebDataset("memory://bucket [1]", 16).captions_of(0) == ["caption 1"]
    finally:
        memory.rm_file("/bucket [1]/0[1].tar")


def test_a_pipe_a_loop_of_links_and_the_home_of_nobody_are_one_line(tmp_path):
    write_tar(tmp_path / "a.tar", sample(0))
    os.mkfifo(tmp_path / "b.tar")
    (tmp_path / "c.tar").symlink_to(tmp_path / "d.tar")
    (tmp_path / "d.tar").symlink_to(tmp_path / "c.tar")
    (tmp_path / "e.tar").symlink_to("/dev/zero")
    (tmp_path / "f.tar").mkdir()
    source = WebDataset(str(tmp_path), 16)
    loop = "Too many levels of symbolic links"
    assert source.skipped == {
        "b.tar": "not a regular file",
        "c.tar": loop,
        "d.tar": loop,
        "e.tar": "not a regular file",
        "f.tar": "not a regular file",
    }
    with pytest.raises(UserError, match=r"^~nobody-at-all/a.tar: there is no such user"):
        WebDataset("~nobody-at-all/a.tar", 16)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer: `git lfs pull`"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b"PK\3\4", "a zip, 7z, rar or gzip archive: unpack it"),
        (b"\x1f\x8b", "unpack it with gunzip"),
    ],
)
def test_what_is_no_tar_says_what_it_is(tmp_path, data, what):
    (tmp_path / "a.tar").write_bytes(data + bytes(2000))
    with pytest.raises(UserError, match=what):
        WebDataset(str(tmp_path), 16)


def test_names_of_one_image_that_are_written_otherwise(tmp_path):
    """By a Mac, which takes accents apart, and with "./" in front."""
    write_tar(tmp_path / "a.tar", [("./ba\u0308r.jpg", image_file(0, "JPEG")), ("b\u00e4r.txt", b"a bear")])
    source = WebDataset(str(tmp_path), 16)
    assert (source.captions(9), source.skipped, source.name(0)) == (["a bear"], {}, "a.tar:./ba\u0308r.jpg")


@pytest.mark.parametrize(("behind", "known"), [(b"", True), (bytes(9000), True), (b"rubbish", False)])
def test_what_stands_behind_the_end_is_not_lost_silently(tmp_path, behind, known):
    whole = write_tar(tmp_path / "a.tar", sample(0)).read_bytes()
    (tmp_path / "a.tar").write_bytes(whole + (behind if known else whole))
    source = WebDataset(str(tmp_path), 16)
    assert source.captions(9) == ["caption 0"]
    assert source.skipped == ({} if known else {"a.tar": source.skipped.get("a.tar")})
    assert known or "more behind its end" in source.skipped["a.tar"]


def test_an_empty_tar(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(UserError, match="no image with a caption; it has no files"):
        WebDataset(str(tmp_path), 16)


def test_a_tar_that_begins_like_another_kind(tmp_path):
    for name in ("8BPS.txt", "%PDF.txt", "RIFF1234AVI .txt", "PK\x03\x04.txt", "version https://git-lfs.txt"):
        write_tar(tmp_path / "a.tar", [(name, b"x"), *sample(0)])
        assert len(WebDataset(str(tmp_path / "a.tar"), 16)) == 1


def test_an_image_in_a_format_that_is_not_read_leaves_the_one_beside_it(tmp_path):
    """As phones export them: IMG_1.HEIC and IMG_1.JPG."""
    write_tar(tmp_path / "a.tar", [("1.HEIC", b"x"), ("1.JPG", image_file(0)), ("1.txt", b"one")])
    source = WebDataset(str(tmp_path), 16)
    assert source.example(0, np.random.default_rng(0)).caption == "one"
    assert source.skipped == {"a.tar:1.HEIC": "HEIC is not read: convert it to PNG or JPEG"}


def test_many_names_without_images_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("dallegan.data.file_source.MAX_NAMED", 5)
    write_tar(tmp_path / "a.tar", [*sample(0), *((f"{i}.json", b"{}") for i in range(12))])
    source = WebDataset(str(tmp_path), 16)
    assert len(source.skipped) == 6
    assert source.skipped["(others)"] == "7 more, not named here"


def test_a_server_that_ignores_the_range_is_found_out(tmp_path, monkeypatch):
    write_tar(tmp_path / "a.tar", sample(0))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    source = WebDataset("memory://bucket/a.tar", 16)
    whole = memory.cat_file("/bucket/a.tar")
    monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: whole)
    try:
        with pytest.raises(
            UserError, match="the tar has changed, or its server does not read parts of a file"
        ):
            source.example(0, np.random.default_rng(0))
    finally:
        memory.rm("/bucket", recursive=True)


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
        "text.tar": "not a tar, but a text",
        "empty.tar": "not a tar, but an empty file",
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
            UserError, match=r"^no captioned images in .*OSError: Forbidden: https://bucket \(a.tar\)$"
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
