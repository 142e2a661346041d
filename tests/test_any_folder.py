"""Folders of any kind: no traceback, no rubbish in a caption, and every file is used, or named and why."""

import csv
import io
import json
import os
import pathlib
import tempfile
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dallegan.data.captions import clean_captions
from dallegan.data.file_source import SUFFIXES, UnusableRecord
from dallegan.data.folder import Folder
from dallegan.data.source import describe
from dallegan.errors import UserError

FILE = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(FILE, "PNG")
WHOLE = FILE.getvalue()
IMAGES = {"whole": WHOLE, "cut": WHOLE[:40], "rubbish": b"rubbish", "empty": b"", "a text": "猫".encode()}
RIGHT = ("utf-8", "utf-8-sig", "utf-16", "utf-32")  # what is read without being named
stems = st.sampled_from(["a", "b", "Ä", "A\u0308", "a.b", " c", "猫", "x y", "#d", "-e", '"f', "g,h", "..i"])
folders = st.sampled_from(["", "", "sub/", "sub/deep/", "Ünder/"])
image_files = st.tuples(folders, stems, st.sampled_from([".png", ".PNG", ".jpg", ".heic", ".jfif"])).map(
    "".join
)
marks = st.sampled_from(
    ["", "", "\0", "\x1b[2J", "\ufffd", "\u200b", "\u2028", "\ud800", '"', ",", ";", "\n"]
)
words = st.sampled_from(["a cat", "一只猫", "ein Bär", "кот", "", " ", "7", "x" * 200])
texts = st.tuples(words, marks, st.sampled_from(["", " 2"])).map("".join)
encodings = st.sampled_from([*RIGHT, *RIGHT, "utf-16-le", "latin-1", "gbk", "shift_jis"])
newlines = st.sampled_from(["\n", "\r\n", "\r"])
named = st.sampled_from(["file_name", "File Name", "image", "path", "id"])
captioned = st.sampled_from(["text", "Caption", "prompt", "label"])


def write(path, text, encoding, newline="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace("\n", newline).encode(encoding, "replace"))


def table(rows, kind, delimiter, keys, has_header):
    """Metadata of (image, text) rows in one of the ways that people write them."""
    if kind == "csv":
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
        writer.writerows([keys, *rows] if has_header else rows)
        return out.getvalue()
    objects = [dict(zip(keys, row, strict=True)) for row in rows]
    if kind == "jsonl":
        return "\n".join(map(json.dumps, objects))
    if kind == "names":
        return json.dumps(dict(rows))
    return json.dumps(objects, indent=1, ensure_ascii=kind == "list")


def check(data, root):
    """Makes a folder, opens it, and looks for what was lost."""
    draw = data.draw
    root.mkdir()
    images = draw(st.dictionaries(image_files, st.sampled_from([*IMAGES, "whole", "whole"]), max_size=5))
    for name, kind in images.items():
        write(root / name, "", "utf-8")
        (root / name).write_bytes(IMAGES[kind])
    for name in draw(st.lists(st.sampled_from(sorted(images)), max_size=4)) if images else []:
        beside = root / (os.path.splitext(name)[0] + draw(st.sampled_from([".txt", ".TXT", ".caption"])))
        write(beside, "\n".join(draw(st.lists(texts, max_size=3))), draw(encodings), draw(newlines))
    rows = draw(st.lists(st.tuples(st.sampled_from([*sorted(images), "gone.png"]), texts), max_size=5))
    kind, encoding = (
        draw(st.sampled_from(["csv", "csv", "jsonl", "list", "raw list", "names"])),
        draw(encodings),
    )
    keys = draw(named), draw(captioned)
    how = draw(st.sampled_from(",;\t|")), keys, draw(st.booleans())
    if kind == "names":
        rows = list(dict(rows).items())
    if rows:
        suffix = ".csv" if kind == "csv" else ".jsonl" if kind == "jsonl" else ".json"
        write(root / f"metadata{suffix}", table(rows, kind, *how), encoding, draw(newlines))
    for place, target in draw(
        st.lists(st.tuples(folders, st.sampled_from([".", "..", "sub", "none", "pipe"])), max_size=2)
    ):
        (root / place).mkdir(parents=True, exist_ok=True)
        path = root / place / draw(st.sampled_from(["link", "link.png", "link.txt"]))
        if not path.is_symlink() and not path.exists():
            os.mkfifo(path) if target == "pipe" else path.symlink_to(target)
    if draw(st.integers(0, 9)):
        write(root / "ok.png", "", "utf-8")
        (root / "ok.png").write_bytes(WHOLE)
        write(root / "ok.txt", "fine", "utf-8")
    try:
        source = Folder(str(root), 8, encoding=draw(st.sampled_from(["", "", "gbk", "latin-1"])))
    except UserError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.startswith("no captioned images in ")
        assert "\n" not in message
        return
    found = {source.name(i): source.captions_of(i) for i in range(len(source))}
    named_or_used = set(found) | set(source.skipped)
    for captions in found.values():
        assert captions
        for caption in captions:
            assert "\ufffd" not in caption
            assert caption.strip()
            assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in caption)
    for path in filter(pathlib.Path.is_file, root.rglob("*")):
        name = str(path.relative_to(root))
        if path.suffix.lower() in SUFFIXES:
            assert name in named_or_used
        elif path.suffix.lower() in (".txt", ".caption"):
            stem = unicodedata.normalize("NFC", name[: -len(path.suffix)])
            owners = {
                n for n in named_or_used if unicodedata.normalize("NFC", os.path.splitext(n)[0]) == stem
            }
            assert name in source.skipped or owners
    assert all(reason and "\n" not in reason for reason in source.skipped.values())
    assert all("\n" not in line for line in describe(source))
    if encoding in RIGHT and source._encoding == "" and all("\0" not in text for _, text in rows):
        reasons = [name for name in source.skipped if name.startswith("metadata.")]
        lost = 0
        for name, text in rows:
            try:
                kept = (
                    set(clean_captions(text)) <= set(found.get(name, [])) if clean_captions(text) else False
                )
            except UnusableRecord:
                kept = False
            lost += not kept and name not in source.skipped
        is_readable = "label" not in keys and "id" not in keys and (kind == "names" or "\n" not in str(rows))
        assert not lost or reasons, (rows, found, source.skipped)
        assert not is_readable or len(reasons) <= len(rows) + 1


def profile(examples):
    """Tries the same examples at each run."""
    silenced = list(HealthCheck)
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=silenced
    )


@profile(200)
@given(st.data())
def test_any_folder(data):
    with tempfile.TemporaryDirectory() as root:
        check(data, pathlib.Path(root) / "data")


@pytest.mark.slow
@profile(3000)
@given(st.integers(), st.data())  # the number makes them others than those above
def test_many_folders(number, data):
    with tempfile.TemporaryDirectory() as root:
        check(data, pathlib.Path(root) / "data")
