"""Captions as people write them: encodings, dialects and names are read as what they are, or named."""

import io
import json
import os
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from dallegan.commands import prepare
from dallegan.commands.sample import Args, count_prompts, main, read_prompts
from dallegan.data import file_source
from dallegan.data.captions import (
    NAME_IT,
    captions_in_json,
    captions_in_object,
    captions_in_text,
    clean_captions,
)
from dallegan.data.file_source import UnusableRecord
from dallegan.data.folder import Folder
from dallegan.data.rows import read_rows
from dallegan.data.source import OTHERS, Source, by_reason, describe, script_of
from dallegan.errors import UserError
from dallegan.io.text import check_encoding

PNG = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(PNG, "PNG")
PNG = PNG.getvalue()


def opened(folder, files, encoding=""):
    """({image: captions}, skipped) of a folder with these files: str is UTF-8, None a small image."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG if data is None else data.encode() if isinstance(data, str) else data)
    source = Folder(str(folder), 8, encoding=encoding)
    return {source.name(i): source.captions_of(i) for i in range(len(source))}, dict(source.skipped)


TWO = {"a.png": None, "b.png": None}
CAT = {"a.png": ["a cat"]}


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "ein grüner Bär"),
        ("gbk", "一只红色的猫"),
        ("utf-16-le", "红色的猫"),
        ("UTF-16", "红色的猫"),
    ],
)
def test_an_encoding_is_named_or_asked_for(tmp_path, encoding, text):
    bare = "utf-16-le" if encoding == "UTF-16" else encoding  # Python's own utf-16 would write a mark
    data = text.encode(bare)
    table = f"file_name,text\na.png,{text}\n".encode(bare)
    whole = json.dumps({"caption": text}, ensure_ascii=False).encode(bare)
    for files in ({"a.txt": data}, {"metadata.csv": table}, {"a.json": whole}):
        folder = tmp_path / next(iter(files))
        with pytest.raises(
            UserError,
            match=r"; skipped: . x (not in UTF-8|has NUL).*\((metadata.csv:\d|a\.)",
        ):
            opened(folder, {"a.png": None} | files)
        assert opened(folder, {"a.png": None} | files, encoding)[0] == {"a.png": [text]}
    marked = text.encode("utf-16")  # a byte order mark is believed first
    assert captions_in_text(marked, encoding) == [text]


@pytest.mark.parametrize("encoding", ["no-such", "rot13", "idna", "punycode"])
def test_an_unknown_encoding_is_refused(encoding):
    with pytest.raises(UserError, match=f"^--encoding {encoding}: no such encoding"):
        check_encoding(encoding, "--encoding")


def test_captions_are_the_same_in_json_and_csv(tmp_path):
    long = "word " * 60_000
    texts = [7, 7.5, "7", long, " x ", "a\tb", None, True, ["one", 2], {"en": "x"}]
    wanted = [["7"], ["7.5"], ["7"], [long[:9999]], ["x"], ["a b"], [], [], ["one", "2"], []]
    assert [captions_in_object({"text": text}) for text in texts] == wanted
    assert [captions_in_json(json.dumps({"text": text}).encode()) for text in texts] == wanted
    table = "file_name,text\n" + "".join(f'a.png,"{"" if t is None else t}"\n' for t in texts[:7])
    found = [
        isinstance(row, dict) and captions_in_object(row)
        for _, row in read_rows(io.BufferedReader(io.BytesIO(table.encode())))
    ]
    assert found == wanted[:7]
    assert captions_in_object({"Text": "a", "caption": ["b", "a"], "prompt": "c"}) == ["a", "b"]
    assert captions_in_object({"text": " ", "prompt": "c"}) == ["c"]
    assert clean_captions([float("nan"), float("inf"), 10**400]) == ["1" + "0" * 400]


def test_control_characters_become_spaces_and_damaged_captions_are_refused():
    assert clean_captions("a\x1b[31mred\x00\x9b\u2028cat\x7f") == ["a [31mred cat"]
    assert captions_in_text(b"one\rtwo\r\nthree\x0bfour\n") == ["one", "two", "three four"]
    for damaged in ("a \ufffd", ["a cat", "\ufffd"]):
        with pytest.raises(UnusableRecord, match=r"U\+FFFD"):
            clean_captions(damaged)
    for data in (b"caf\xe9", "猫".encode("utf-16-le") + b"\0", "B\ufffdr".encode()):
        with pytest.raises(UnusableRecord, match=r"encoding|UTF-16"):
            captions_in_text(data)


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.png.txt", "a.json", "A.txt"])
def test_texts_beside_an_image(tmp_path, name):
    text = '{"caption": "a cat"}' if name.endswith("json") else "a cat"
    assert opened(tmp_path, {"a.png": None, name: text}) == (CAT, {})


def test_files_whose_names_differ_in_case_are_two(tmp_path):
    files = {
        "a.png": None,
        "A.png": None,
        "a.txt": "lower",
        "A.txt": "upper",
        "b.JPG": None,
        "B.txt": "third",
    }
    files |= {"metadata.csv": "file_name,text\nA.png,capital\n"}
    expected = {"a.png": ["lower"], "A.png": ["capital", "upper"], "b.JPG": ["third"]}
    assert opened(tmp_path, files) == (expected, {})


def test_all_captions_of_an_image_are_used(tmp_path):
    files = {
        "metadata.csv": "file_name,text\na.png,one\na.png,two",
        "a.txt": "three\none",
        "a.caption": "four",
    }
    assert opened(tmp_path, TWO | files)[0] == {"a.png": ["one", "two", "four", "three"]}


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_two_kinds_are_the_same(tmp_path, form, other):
    names = [unicodedata.normalize(each, "bär") for each in (form, other)]
    files = {
        f"{names[0]}.png": None,
        "metadata.csv": f"file_name,text\n{names[1]}.png,one",
        f"{names[1]}.txt": "two",
    }
    assert opened(tmp_path, files) == ({f"{names[0]}.png": ["one", "two"]}, {})


def test_linked_folders_are_followed_once_and_loops_named(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "img").symlink_to(tmp_path / "out")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "self").symlink_to("self")
    (tmp_path / "data" / "gone.png").symlink_to("nothing")
    (tmp_path / "out" / "b.png").write_bytes(PNG)
    files = {"a.png": None, "metadata.csv": "file_name,text\na.png,one\nagain/b.png,two\nimg/b.png,three"}
    found, skipped = opened(tmp_path / "data", files)
    assert found == {"a.png": ["one"], "again/b.png": ["two"]}
    assert skipped == {
        "img": "the same folder as again",
        "again/loop": "the same folder as .",
        "gone.png": "a link to nothing, or not a regular file",
        "metadata.csv:4": "no image: img/b.png",
    }


def test_pipes_and_devices_are_named(tmp_path):
    for name in ("a.png", "b.txt", "metadata.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "c.png").symlink_to("/dev/zero")
    found, skipped = opened(tmp_path, {"b.png": None, "b.caption": "x"})
    assert found == {"b.png": ["x"]}
    assert set(skipped) == {"a.png", "b.txt", "c.png", "metadata.jsonl"}
    assert set(skipped.values()) == {"a link to nothing, or not a regular file"}


def test_files_of_systems_are_ignored_and_other_kinds_named(tmp_path):
    junk = ["._a.png", "._a.txt", ".DS_Store", "__MACOSX/a.png", "x/__MACOSX/._a.txt", "@eaDir/a.png"]
    others = {
        "images.zip": "unpack it",
        "t.parquet": "save them as files",
        "x.tar": "webdataset:",
        "b.heic": "HEIC is not read",
        "o.txt": "no image",
    }
    files = {
        "a.png": None,
        "a.txt": "a cat",
        "b.txt": "a dog",
        "b.heic": b"\0\0\0\x18ftypheic",
        "notes.md": "x",
    }
    found, skipped = opened(tmp_path, dict.fromkeys([*junk, *others], "x") | files)
    assert found == CAT
    assert {k for k, v in others.items() if v not in skipped.get(k, "")} == set()
    assert set(skipped) == set(others)


def test_home_of_nobody_is_refused():
    with pytest.raises(UserError, match=r"^~nobody-at-all/x: there is no such user"):
        Folder("~nobody-at-all/x", 8)


def test_names_and_reasons_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(file_source, "MAX_NAMED", 5)
    lines = "\n".join(json.dumps({"file_name": f"{i}.png", "text": "x"}) for i in range(1000))
    found, skipped = opened(tmp_path, {"a.png": None, "a.txt": "a cat", "metadata.jsonl": lines})
    assert found == CAT
    assert (len(skipped), skipped[OTHERS]) == (6, "995 more, not named here")


def test_a_report_tells_images_scripts_and_reasons(tmp_path):
    files = {f"{i}.png": None for i in range(6)} | {"0.txt": "a cat\n一只猫", "1.txt": "кот", "2.txt": "猫"}
    files |= {"3.txt": b"\xff\xfe\xff", "5.png": b"rubbish", "5.txt": "12"}
    opened(tmp_path, files)
    source = Folder(str(tmp_path), 8)
    assert describe(source) == [
        "data: images 3, captions 4 (Han 50%, Latin 25%, Cyrillic 25%)",
        f"data: skipped 1 x not in UTF-16 (byte 2): {NAME_IT} (3.txt)",
        "data: skipped 1 x no picture, or of a kind that is not read (5.png)",
        "data: skipped 2 x no caption (3.png, 4.png)",
    ]
    assert by_reason({f"{i}": f"{i} bytes: too long" for i in range(4)}) == [
        "4 x 0 bytes: too long (0, 1, 2, ...)"
    ]
    assert list(map(script_of, ["", "12", "ひらがな", "Ａ"])) == [
        "no letters",
        "no letters",
        "Hiragana",
        "Fullwidth",
    ]


def test_a_report_makes_no_images():
    class Squares(Source):
        def __len__(self):
            return 10**9

        def example(self, index, rng: np.random.Generator):
            raise AssertionError("an image is made")

    assert describe(Squares()) == ["data: images without end"]


def test_prepare_reports_what_it_found(tmp_path, capsys):
    texts = "".join(f"a cat that says {chr(97 + i % 26) * (i % 9)}\n" for i in range(400))
    opened(tmp_path / "in", {"a.png": None, "a.txt": texts, "b\x1b.png": None})
    out = tmp_path / "out"
    job = prepare.start_job(prepare.Args(f"folder:{tmp_path / 'in'}", str(out), 8, vocab=300), out)
    assert job.skipped == {"b\x1b.png": "no caption"}
    count = len(set(texts.split("\n"))) - 1
    skipped = "data: skipped 1 x no caption (b\\x1b.png)\n"
    reported = f"data: images 1, captions {count} (Latin 100%)\n{skipped}"
    assert capsys.readouterr().err == reported


def test_prompts_of_a_file_are_decoded_or_refused(tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    for data, encoding in (
        ("猫\r\n\r\n狗\n".encode("utf-16"), ""),
        ("猫\n狗".encode("gbk"), "gbk"),
        ("猫\r狗".encode(), ""),
    ):
        file.write_bytes(data)
        assert list(read_prompts(file, encoding)) == ["猫", "狗"]
    for data in ("红色的猫".encode("gbk"), "a\nb".encode("utf-16-le"), b"x" * 2**21, "B\ufffdr".encode()):
        file.write_bytes(data)
        with pytest.raises(
            UserError,
            match=r"prompts.txt, line 1: (not in UTF-8, or with U\+FFFD.*--encoding|has NUL|a line of)",
        ):
            count_prompts(Args(file=file))
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO("猫\n".encode("utf-16"))))
    )
    assert list(read_prompts(None)) == ["猫"]
    with pytest.raises(UserError, match=r"^--encoding nonsense: no such encoding"):
        main(["x", "--encoding", "nonsense"])
