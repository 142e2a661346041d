"""Metadata as people write it: any dialect and place is read as what it is, or its rows are named."""

import io
import json
import os
import re

import pytest
from test_captions import TWO, opened

from dallegan.data import rows
from dallegan.data.rows import read_lines, read_rows
from dallegan.errors import UserError

CAT, DOG = {"a.png": ["a cat"]}, {"b.png": ["a dog"]}
ROWS = [{"file_name": "a.png", "text": "a cat"}, {"file_name": "b.png", "text": "a dog"}]
LINES = "\n".join(map(json.dumps, ROWS))
TABLE = "file_name,text\na.png,a cat\nb.png,a dog\n"

READ = {
    "jsonl": ("metadata.jsonl", LINES),
    "jsonl with blank lines": ("metadata.jsonl", "\n \n" + LINES.replace("\n", "\r\n\r\n")),
    "jsonl of an old Mac": ("metadata.jsonl", LINES.replace("\n", "\r")),
    "jsonl in utf-16": ("metadata.jsonl", LINES.encode("utf-16")),
    "jsonl in utf-16 of the other order": ("metadata.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be")),
    "jsonl in utf-32": ("metadata.jsonl", LINES.encode("utf-32")),
    "jsonl with a mark": ("metadata.jsonl", LINES.encode("utf-8-sig")),
    "json list": ("metadata.json", json.dumps(ROWS)),
    "json list in lines": ("metadata.json", json.dumps(ROWS, indent=1)),
    "pretty jsonl": ("metadata.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
    "jsonl with commas": ("metadata.jsonl", LINES.replace("\n", ",\n")),
    "wrapped list": ("metadata.json", json.dumps({"version": 1, "images": ROWS})),
    "kohya": ("metadata.json", json.dumps({"a.png": {"caption": "a cat"}, "b.png": {"tags": "a dog"}})),
    "captions by name": ("metadata.json", json.dumps({"a.png": "a cat", "b.png": "a dog"})),
    "json1": ("metadata.json1", LINES),
    "upper-case name": ("Metadata.JSONL", LINES),
    "other keys": ("metadata.jsonl", LINES.replace("file_name", "image").replace("text", "caption")),
    "keys of other cases": (
        "metadata.jsonl",
        LINES.replace("file_name", "File Name").replace("text", "Prompt"),
    ),
    "csv": ("metadata.csv", TABLE),
    "semicolons": ("metadata.csv", TABLE.replace(",", ";")),
    "tabs": ("metadata.csv", TABLE.replace(",", "\t")),
    "tsv": ("metadata.tsv", TABLE.replace(",", "\t")),
    "bars": ("metadata.csv", TABLE.replace(",", "| ")),
    "csv in utf-16": ("metadata.csv", TABLE.replace(",", "\t").replace("\n", "\r\n").encode("utf-16")),
    "csv with a mark": ("metadata.csv", TABLE.encode("utf-8-sig")),
    "excel's first line": ("metadata.csv", "sep=;\r\n" + TABLE.replace(",", ";").replace("\n", "\r\n")),
    "csv of an old Mac": ("metadata.csv", TABLE.replace("\n", "\r")),
    "blanks": ("metadata.csv", TABLE.replace(",", " , ")),
    "blanks and quotes": ("metadata.csv", TABLE.replace(",a cat", ', "a cat"')),
    "upper case": ("metadata.csv", TABLE.replace("file_name,text", "File_Name,Text")),
    "caption column": ("metadata.csv", TABLE.replace("text", "caption")),
    "no header": ("metadata.csv", TABLE.partition("\n")[2]),
    "no header, tabs": ("metadata.tsv", TABLE.partition("\n")[2].replace(",", "\t")),
    "pandas' index": ("metadata.csv", ",file_name,text\n0,a.png,a cat\n1,b.png,a dog\n"),
    "empty columns": ("metadata.csv", TABLE.replace("\n", ",,\n")),
    "comments": ("metadata.csv", "\n\n# of 2026\n" + TABLE.replace("\nb", "\n\n# c\nb")),
    "all fields quoted": ("metadata.csv", '"file_name","text"\n"a.png","a cat"\n"b.png","a\n dog"\n'),
    "excel's empty rows": ("metadata.csv", TABLE.replace(",", ";").replace("\n", ";\n") + ";;\n;;\n"),
    "marked twice": ("metadata.csv", "\ufeff" + TABLE.replace("a cat", "\ufeffa cat")),
    "other case": ("metadata.csv", TABLE.replace("a.png", "A.PNG")),
    "no suffix": ("metadata.json", json.dumps({"a": {"caption": "a cat"}, "b": {"caption": "a dog"}})),
    "windows' separators": ("metadata.csv", TABLE.replace("a.png", ".\\a.png")),
    "way out and in": ("metadata.csv", TABLE.replace("a.png", "../data/a.png")),
    "absolute": ("metadata.csv", TABLE.replace("a.png", "{folder}/a.png")),
}


@pytest.mark.parametrize("kind", READ)
def test_metadata_that_is_read(tmp_path, kind):
    name, data = READ[kind]
    folder = tmp_path / "data"
    if isinstance(data, str):
        data = data.replace("{folder}", str(folder))
    found, skipped = opened(folder, TWO | {name: data})
    one_line = {k: [" ".join(t.split()) for t in v] for k, v in found.items()}
    assert (one_line, skipped) == (CAT | DOG, {})


NAMED = {
    "latin-1 csv": (
        "metadata.csv",
        (TABLE + "a.png,Bär").encode("latin-1"),
        CAT | DOG,
        {"metadata.csv:4": "not in UTF-8"},
    ),
    "latin-1 jsonl": (
        "metadata.jsonl",
        LINES.replace("cat", "Bär").encode("latin-1"),
        DOG,
        {"metadata.jsonl:1": "not in UTF-8"},
    ),
    "latin-1 on the first line": (
        "metadata.csv",
        ("a.png,Bär\nb.png,a dog").encode("latin-1"),
        DOG,
        {"metadata.csv:1": "not in UTF-8"},
    ),
    "utf-16 without a mark": (
        "metadata.csv",
        TABLE.encode("utf-16-le"),
        {},
        {f"metadata.csv:{n}": "NUL" for n in (1, 2, 3, 4)},
    ),
    "unquoted commas": (
        "metadata.csv",
        TABLE.replace("cat", "cat, grey"),
        DOG,
        {"metadata.csv:2": "more fields than columns"},
    ),
    "no caption column": (
        "metadata.csv",
        TABLE.replace("text", "label"),
        {},
        {"metadata.csv:1": "file_name, label"},
    ),
    "no file column": ("metadata.csv", TABLE.replace("file_name", "id"), {}, {"metadata.csv:1": "id, text"}),
    "no caption key": (
        "metadata.jsonl",
        LINES.replace('text": "a cat', 'label": "a cat'),
        DOG,
        {"metadata.jsonl:1": "file_name, label"},
    ),
    "no file key": (
        "metadata.jsonl",
        LINES.replace('file_name": "a', 'id": "a'),
        DOG,
        {"metadata.jsonl:1": "id, text"},
    ),
    "not json": (
        "metadata.jsonl",
        LINES + "\nx\n[1]\n7",
        CAT | DOG,
        {f"metadata.jsonl:{n}": "not a JSON object" for n in (3, 4, 5)},
    ),
    "first line broken": (
        "metadata.jsonl",
        '{"file_name": \n' + LINES,
        CAT | DOG,
        {"metadata.jsonl:1": "not a JSON object"},
    ),
    "nested": (
        "metadata.jsonl",
        "[" * 100_000 + "\n" + LINES,
        CAT | DOG,
        {"metadata.jsonl:1": "not a JSON object"},
    ),
    "outside": (
        "metadata.csv",
        TABLE.replace("a.png", "../a.png"),
        DOG,
        {"metadata.csv:2": "no image: ../a.png"},
    ),
    "quote inside": (
        "metadata.csv",
        TABLE.replace("a cat", '"a" cat'),
        DOG,
        {"metadata.csv:2": "a quotation mark at a wrong place"},
    ),
    "replaced before": (
        "metadata.csv",
        TABLE.replace("a cat", "B\ufffdr"),
        DOG,
        {"metadata.csv:2": "not in UTF-8"},
    ),
    "replaced and escaped": (
        "metadata.jsonl",
        LINES.replace("a cat", "B\\ufffdr"),
        DOG,
        {"metadata.jsonl:1": "U+FFFD"},
    ),
    "list in a line": (
        "metadata.json",
        json.dumps([{"file_name": "x"}, *ROWS, 7]),
        CAT | DOG,
        {"metadata.json:1": "no image: x", "metadata.json:4": "not a JSON object"},
    ),
    "null": ("metadata.jsonl", LINES.replace('"a cat"', "null"), DOG, {"metadata.jsonl:1": "no caption"}),
}


@pytest.mark.parametrize("kind", NAMED)
def test_metadata_that_is_named(tmp_path, kind):
    name, data, found, reasons = NAMED[kind]
    rest = {"c.png": None, "c.txt": "a car"}
    read, skipped = opened(tmp_path / "data", TWO | rest | {name: data})
    assert read == found | {"c.png": ["a car"]}
    assert {k: v for k, v in skipped.items() if reasons.get(k, v) not in v} == {}
    assert set(skipped) == set(reasons) | ({"a.png", "b.png"} - set(found))


def test_long_lines_are_named_and_reading_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE", 200)
    monkeypatch.setattr(rows, "MAX_DOCUMENT", 500)
    for first, head in ((LINES, ""), (TABLE, "file_name,text\n")):
        for long in ("x" * 200, "x" * 1000, "\0" * 1001, "é" * 900):
            data = f"{first}\n{long}\n{long}".encode()
            reasons = [
                row for _, row in read_rows(io.BufferedReader(io.BytesIO(data))) if isinstance(row, Exception)
            ]
            assert [str(reason) for reason in reasons] == ["a line of more than 200 characters"] * 2, head


def test_lines_of_a_pipe_come_as_they_are_written():
    read, write = os.pipe()
    with open(read, "rb") as file, open(write, "wb", buffering=0) as pen:
        pen.write("猫\n".encode())
        lines = read_lines(file)
        assert next(lines) == (1, "猫\n")
        pen.write(b"dog\n")
        assert next(lines) == (2, "dog\n")


def test_metadata_is_relative_to_its_own_folder(tmp_path):
    table = "file_name,text\na.png,{}\n"
    files = {"x/a.png": None, "y/a.png": None, "y/z/b.png": None}
    files |= {"x/metadata.csv": table.format("of x"), "y/metadata.csv": table.format("of y")}
    files |= {"metadata.jsonl": json.dumps({"file_name": "y/z/b.png", "text": "of all"})}
    expected = {"x/a.png": ["of x"], "y/a.png": ["of y"], "y/z/b.png": ["of all"]}
    assert opened(tmp_path, files) == (expected, {})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("captions.jsonl", "call it metadata.csv"),
        ("metadata (1).csv", "call it metadata.csv"),
        ("metadata.xlsx", "save it as metadata.csv"),
        ("captions.json", "no image"),
    ],
)
def test_metadata_of_another_name_has_a_hint(tmp_path, name, hint):
    with pytest.raises(UserError, match=f"; skipped: .*{hint}.* \\({re.escape(name)}\\)"):
        opened(tmp_path, TWO | {name: "x"})
