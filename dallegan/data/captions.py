"""Captions and metadata of every source: text files, and rows of JSON, JSON Lines, CSV and TSV.

Nothing is guessed about characters. Text that is not in its encoding, or was not when it was saved, is refused
with a reason, since a model would learn the rubbish.
"""

import collections
import csv
import io
import itertools
import json
import math
import os
import re
from collections.abc import Iterator
from typing import IO

from dallegan.data.file_source import SUFFIXES, UnusableRecord
from dallegan.io.files import parse_object
from dallegan.io.text import decode, find_encoding
from dallegan.tokenizer import is_blank

MAX_CAPTION = 10_000  # characters kept of a caption; no model reads more
MAX_LINE = 2**20  # characters of a line, and of a row of several lines
MAX_ROW_LINES = 100  # lines of a row of CSV
MAX_DOCUMENT = 2**26  # bytes of a JSON file that is not one row a line
IMAGE_FIELDS = (
    "file_name", "filename", "file", "image", "image_file_name", "image_file", "image_path", "image_name",
    "file_path", "filepath", "path", "img",
)  # fmt: skip
# the first group that has a caption is used: all of its fields
CAPTION_FIELDS = (
    ("text", "texts", "caption", "captions"),
    ("prompt", "prompts"),
    ("description",),
    ("tags",),
)
DELIMITERS = ",\t;|"
NAME_IT = "name its encoding by --data.encoding (of prepare and sample: --encoding)"
Row = dict[str, object]  # fields by their names in lower case


def clean_captions(value: object) -> list[str]:
    """Returns the usable captions in a string, a number, or a list of them, each once.

    Blank ones are left out, also those of invisible characters alone. Control characters and line ends become
    spaces, what has no UTF-8 form becomes "?", and only the first 10,000 characters are kept. Raises
    UnusableRecord if a caption has U+FFFD, which programs write for a character that they could not read.
    """
    captions = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item):
            item = str(item)  # in CSV they are text anyway
        if isinstance(item, str):
            text = re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029]+", " ", item[: 2 * MAX_CAPTION])
            captions.append(text.encode("utf-8", "replace").decode().strip()[:MAX_CAPTION].strip())
    if any("\ufffd" in text for text in captions):
        raise UnusableRecord("a caption with U+FFFD: it was saved in a wrong encoding")
    return list(dict.fromkeys(text for text in captions if not is_blank(text)))


def captions_in_text(data: bytes, encoding: str = "") -> list[str]:
    """Returns the captions in a text file, one a line. Raises UnusableRecord if it is not in its encoding."""
    try:
        text = decode(data, encoding)
    except ValueError as error:
        raise UnusableRecord(str(error).replace("name its encoding", NAME_IT)) from None
    return clean_captions(re.split(r"\r\n|\r|\n", text))


def captions_in_object(row: Row) -> list[str]:
    """Returns the captions in an object or a row, [] for none. Raises UnusableRecord."""
    row = _named(row)
    for group in CAPTION_FIELDS:
        values = [row.get(name) for name in group]
        if captions := clean_captions(
            [v for each in values for v in (each if isinstance(each, list) else [each])]
        ):
            return captions
    return []


def captions_in_json(data: bytes, encoding: str = "") -> list[str]:
    """Returns the captions in a file of one JSON object, [] for none. Raises UnusableRecord."""
    try:
        return captions_in_object(parse_object(decode(data, encoding)))
    except UnusableRecord:
        raise
    except ValueError as error:
        message = str(error) if str(error).startswith(("not in", "has NUL")) else "not a JSON object"
        raise UnusableRecord(message.replace("name its encoding", NAME_IT)) from None


def image_of(row: Row) -> str:
    """Returns the image that a row names, as it is written there; "" for none."""
    found = (row.get(name) for name in IMAGE_FIELDS)
    return next((value for value in found if isinstance(value, str) and value.strip()), "").strip()


def fields_of(row: Row) -> str:
    """Returns the names of a row's fields, for a message."""
    return ", ".join(map(repr, itertools.islice(row, 12))) or "none"


def _named(row: Row) -> Row:
    return {_name(key): value for key, value in row.items()}


def _name(key: str) -> str:
    return re.sub(r"[\s-]+", "_", key.strip().lower())


def read_lines(file: IO[bytes], encoding: str = "") -> Iterator[tuple[int, str | UnusableRecord]]:
    """Yields (number, line) of a text file of any length, or what is wrong with that line.

    Args:
        file: a file, pipe or terminal, open for reading. It is open afterwards, too.
        encoding: what the bytes are if there is no byte order mark; "" for UTF-8.
    """
    name = find_encoding(file.peek(4), encoding)  # type: ignore[attr-defined]  # of a BufferedReader
    text = io.TextIOWrapper(file, name, "replace")
    try:
        for number in itertools.count(1):
            line = piece = text.readline(MAX_LINE + 1)
            if not line:
                return
            while len(piece) > MAX_LINE and not piece.endswith("\n"):
                piece = text.readline(MAX_LINE + 1)
            if len(line) > MAX_LINE:
                yield number, UnusableRecord(f"a line of more than {MAX_LINE} characters")
            elif "\0" in line:
                yield (
                    number,
                    UnusableRecord("has NUL characters: UTF-16 without a byte order mark, or not a text"),
                )
            elif "\ufffd" in line:
                yield number, UnusableRecord(f"not in {name.removesuffix('-sig').upper()}: {NAME_IT}")
            else:
                yield number, line
    finally:
        text.detach()


def read_rows(file: IO[bytes], encoding: str = "") -> Iterator[tuple[int, Row | UnusableRecord]]:
    """Yields (number of its line, row) of JSON, JSON Lines, CSV or TSV, or what is wrong with that row.

    The contents decide which it is. A JSON file may be a list of objects, an object that holds such a list, or
    one of images: {"a.png": "caption"}. CSV may have any of the delimiters , ; | and tab, and no header if its
    columns are an image and a caption.
    """
    lines = read_lines(file, encoding)
    blank = lambda line: isinstance(line[1], str) and not line[1].strip()
    lines = itertools.dropwhile(blank, lines)
    first = next(lines, None)
    if first is None:
        return
    number, line = first
    if isinstance(line, str) and not line.lstrip().startswith(("{", "[")):
        yield from _csv_rows(itertools.chain([first], lines))
        return
    values = None if isinstance(line, str) and _is_object(line) else _document(file, encoding)
    if values is not None:
        for number, value in values:
            yield from ((number, row) for row in _rows_in(value))
        return
    for number, line in itertools.chain([first], lines):
        if isinstance(line, UnusableRecord):
            yield number, line
        elif line.strip():
            try:
                yield from ((number, row) for row in _rows_in(parse_object(line)))
            except ValueError:
                yield number, UnusableRecord("not a JSON object")


def _is_object(line: str) -> bool:
    try:
        return bool(parse_object(line))
    except ValueError:
        return False


def _document(file: IO[bytes], encoding: str) -> list[tuple[int, object]] | None:
    """Returns (line, value) of all JSON values in a file; None if it is large or has anything else."""
    place = file.tell()
    try:
        file.seek(0)
        data = file.read(MAX_DOCUMENT + 1)
        text, end, values = decode(data, encoding) if len(data) <= MAX_DOCUMENT else "", 0, []
        line = 1
        while rest := re.compile(r"[\s,]*").match(text, end):
            line += text.count("\n", end, rest.end())
            if rest.end() == len(text):
                return values or None
            value, end = json.JSONDecoder().raw_decode(text, rest.end())
            values.append((line, value))
            line += text.count("\n", rest.end(), end)
    except (ValueError, RecursionError):
        pass
    finally:
        file.seek(place)
    return None


def _rows_in(value: object) -> Iterator[Row | UnusableRecord]:
    """Yields the rows in a JSON value: an object, a list of them, or an object that holds or names them."""
    if isinstance(value, dict) and not image_of(_named(value)):
        lists = [v for v in value.values() if isinstance(v, list) and any(isinstance(x, dict) for x in v)]
        if len(lists) == 1:
            value = lists[0]
        elif value and all(isinstance(v, dict) or _is_image(k) for k, v in value.items()):
            value = [{"file_name": k} | (v if isinstance(v, dict) else {"text": v}) for k, v in value.items()]
    for row in value if isinstance(value, list) else [value]:
        yield _named(row) if isinstance(row, dict) else UnusableRecord("not a JSON object")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _csv_rows(
    lines: Iterator[tuple[int, str | UnusableRecord]],
) -> Iterator[tuple[int, Row | UnusableRecord]]:
    """Yields (number of its first line, row) of CSV. A row that is not closed costs its first line alone."""
    csv.field_size_limit(2 * MAX_LINE)  # a caption may be as long as in JSON
    names, delimiter = None, ","
    waiting: collections.deque[tuple[int, str | UnusableRecord]] = (
        collections.deque()
    )  # lines that are read again
    take = lambda: waiting.popleft() if waiting else next(lines, None)
    while (taken := take()) is not None:
        number, line = taken
        if isinstance(line, UnusableRecord):
            yield number, line
            continue
        if not line.strip() or (names is None and re.match(r"#|sep=.$", line.strip(), re.IGNORECASE)):
            continue
        if names is None:
            names, delimiter = _columns(line)
            if not names:
                columns = ", ".join(map(repr, _fields(line, ",")[:12]))
                hint = "one must be file_name, and one text"
                yield number, UnusableRecord(f"the columns are {columns}: {hint}"[:400])
                return
            if not _is_image(_fields(line, delimiter)[0]):
                continue
        following: list[tuple[int, str | UnusableRecord]] = []
        row: Row | UnusableRecord | None = None
        while row is None:
            try:
                row = _row(_fields(line, delimiter, strict=True), names)
            except csv.Error as error:
                is_open = "unexpected end" in str(error)
                further = (
                    take() if is_open and len(following) < MAX_ROW_LINES and len(line) < MAX_LINE else None
                )
                if further is not None:
                    following.append(further)
                if further is not None and isinstance(further[1], str):
                    line += further[1]
                else:
                    waiting.extendleft(reversed(following))
                    row = UnusableRecord("a quotation mark that is not closed" if is_open else str(error))
        if row:
            yield number, row


def _columns(line: str) -> tuple[list[str], str]:
    """Returns the names of the columns and the delimiter of CSV, from its first line; [] if it tells none."""
    for delimiter in DELIMITERS:
        names = [_name(field) for field in _fields(line, delimiter)]
        if image_of(dict.fromkeys(names, "x")) and captions_in_object(dict.fromkeys(names, "x")):
            return names, delimiter
    for delimiter in DELIMITERS:
        fields = _fields(line, delimiter)
        if len(fields) > 1 and _is_image(fields[0]):
            return ["file_name", "text"], delimiter
    return [], ","


def _fields(line: str, delimiter: str, strict: bool = False) -> list[str]:
    """Returns the fields of a row. Raises csv.Error if `strict`, for quotation marks at a wrong place."""
    rows = csv.reader(
        io.StringIO(line, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict
    )
    fields = next(rows, [])
    if strict and any(rows):
        raise csv.Error("a quotation mark at a wrong place")
    return fields


def _row(fields: list[str], names: list[str]) -> Row | UnusableRecord:
    """Returns the fields by their names; a name that several columns have has a list. {} for a comment."""
    if len(fields) < 2 and fields[0].startswith("#"):
        return {}
    if any(fields[len(names) :]):
        return UnusableRecord("more fields than columns: put captions with delimiters into quotation marks")
    row: Row = {}
    for name in names:
        values = [field for other, field in zip(names, fields, strict=False) if other == name]
        row[name] = values[0] if len(values) == 1 else values
    return row
