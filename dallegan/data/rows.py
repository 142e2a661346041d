"""Lines of text files of any length, and rows of metadata in JSON, JSON Lines, CSV or TSV.

They are read one after the other, and what is wrong with one costs it alone: it takes the form of an
UnusableRecord, so that the reader goes on.
"""

import collections
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Iterator
from typing import IO

from dallegan.data.captions import NAME_IT, Row, captions_in_object, fields_of, lower, lower_name
from dallegan.data.file_source import SUFFIXES, UnusableRecord
from dallegan.io.files import parse_object
from dallegan.io.text import decode, find_encoding

MAX_LINE = 2**20  # characters of a line
MAX_ROW_LINES = 100  # lines of a row of CSV
MAX_DOCUMENT = 2**26  # bytes of a JSON file that is not one row a line
IMAGE_FIELDS = (
    "file_name", "filename", "file", "image", "image_file_name", "image_file", "image_path", "image_name",
    "file_path", "filepath", "path", "img",
)  # fmt: skip
MISPLACED = "a quotation mark at a wrong place: inside a caption in quotation marks it is doubled"
DELIMITERS = ",\t;|"
Line = tuple[int, str | UnusableRecord]  # its number from 1 on, and what is written there
Numbered = tuple[int, Row | UnusableRecord]  # the number of its first line, and what the row is


def image_of(row: Row) -> str:
    """Returns the image that a row names, as it is written there; "" for none."""
    values = (row.get(name) for name in IMAGE_FIELDS)
    return next((value.strip() for value in values if isinstance(value, str) and value.strip()), "")


def _is_image(name: str) -> bool:
    return os.path.splitext(name.strip())[1].lower() in SUFFIXES


def read_lines(file: IO[bytes], encoding: str = "") -> Iterator[Line]:
    """Yields the lines of a text file, a pipe or a terminal, or what is wrong with a line.

    Args:
        file: a buffered reader, which stays open.
        encoding: what the bytes are if there is no byte order mark; "" for UTF-8.
    """
    name = find_encoding(file.peek(4), encoding)  # type: ignore[attr-defined]  # of io.BufferedReader
    text = io.TextIOWrapper(file, name, "replace")
    try:
        for number in itertools.count(1):
            line = text.readline(MAX_LINE)
            if not line:
                return
            if len(line) == MAX_LINE and not line.endswith("\n"):
                yield number, UnusableRecord(f"a line of more than {MAX_LINE} characters")
                while len(line) == MAX_LINE and not line.endswith("\n"):
                    line = text.readline(MAX_LINE)
            elif "\0" in line:
                yield number, UnusableRecord("has NUL characters: UTF-16 without a mark, or not a text")
            elif "\ufffd" in line:
                kind = name.removesuffix("-sig").upper()
                yield number, UnusableRecord(f"not in {kind}, or with U+FFFD: {NAME_IT}")
            else:
                yield number, line
    finally:
        if not file.closed:
            text.detach()


def read_rows(file: IO[bytes], encoding: str = "") -> Iterator[Numbered]:
    """Yields the rows of a file of metadata, with the names of its fields in lower case.

    The contents decide which kind it is. JSON may be a row a line, a list of rows, an object with such a
    list, or one with images as its names; where rows are no lines, the rows are numbered. CSV may have any of
    `DELIMITERS`, and no header if its columns are an image and a caption.

    Args:
        file: a file on a disk, open for reading, which stays open.
        encoding: what the bytes are if there is no byte order mark; "" for UTF-8.
    """
    lines, head, line = read_lines(file, encoding), [], ""
    for number, line in itertools.islice(lines, 1000):
        head.append((number, line))
        if isinstance(line, str) and line.strip():
            break
    lines = itertools.chain(head, lines)
    if isinstance(line, str) and not line.lstrip().startswith(("{", "[")):
        yield from _csv_rows(lines)
        return
    rows = list(_parse_line(line)) if isinstance(line, str) else []
    if len(rows) != 1 or isinstance(rows[0], UnusableRecord):
        whole = itertools.chain.from_iterable(map(_rows_in, _document(file, encoding)))
        if (row := next(whole, None)) is not None:
            yield from enumerate(itertools.chain([row], whole), 1)
            return
    for number, line in lines:
        if isinstance(line, UnusableRecord):
            yield number, line
        elif line.strip():
            yield from ((number, row) for row in _parse_line(line))


def _parse_line(line: str) -> Iterator[Row | UnusableRecord]:
    """Yields the rows in a line of JSON Lines, at least one."""
    try:
        value = parse_object(line)
    except ValueError:
        yield UnusableRecord("not a JSON object")
    else:
        yield from _rows_in(value)


def _document(file: IO[bytes], encoding: str) -> list[object]:
    """Returns the JSON values in a file; [] if it is large or has anything else."""
    place, values, end = file.tell(), [], 0
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    try:
        file.seek(0)
        data = file.read(MAX_DOCUMENT + 1)
        text = decode(data, encoding) if len(data) <= MAX_DOCUMENT else "no JSON"
        while (start := between.match(text, end).end()) < len(text):  # type: ignore[union-attr]
            value, end = decoder.raw_decode(text, start)
            values.append(value)
        return values
    except (ValueError, RecursionError):
        return []
    finally:
        file.seek(place)


def _rows_in(value: object) -> Iterator[Row | UnusableRecord]:
    """Yields the rows in a JSON value: an object, a list of them, or an object that holds or names them."""
    if isinstance(value, dict) and not image_of(lower(value)):
        lists = [v for v in value.values() if isinstance(v, list) and any(isinstance(x, dict) for x in v)]
        if len(lists) == 1:
            value = lists[0]
        elif value and all(isinstance(v, dict) or _is_image(k) for k, v in value.items()):
            value = [
                {"file_name": k, **(v if isinstance(v, dict) else {"text": v})} for k, v in value.items()
            ]
    for row in value if isinstance(value, list) and value else [value]:
        yield lower(row) if isinstance(row, dict) else UnusableRecord("not a JSON object")


def _csv_rows(lines: Iterator[Line]) -> Iterator[Numbered]:
    """Yields the rows of CSV. A quotation mark that is not closed costs its line alone."""
    csv.field_size_limit(2 * MAX_LINE)  # a caption may be as long as in JSON
    waiting: collections.deque[Line] = collections.deque()  # lines to read again
    take = lambda: waiting.popleft() if waiting else next(lines, None)
    names, delimiter = [], ","
    while (taken := take()) is not None:
        number, line = taken
        if isinstance(line, UnusableRecord):
            yield number, line
            continue
        if not line.strip() or (not names and re.match(r"#|sep=.$", line.strip(), re.IGNORECASE)):
            continue
        if not names:
            names, delimiter = _columns(line)
            if not names:
                columns = fields_of(_fields(line, ","))
                yield number, UnusableRecord(f"columns without a file_name or a text: {columns}")
                return
            if not _is_image(_fields(line, delimiter)[0]):
                continue
        following: list[Line] = []
        while True:
            try:
                if row := _row(_fields(line, delimiter, strict=True), names):
                    yield number, row
                break
            except csv.Error as error:
                is_open = "unexpected end" in str(error)
                may_go_on = is_open and len(following) < MAX_ROW_LINES and len(line) < MAX_LINE
                if may_go_on and (further := take()) is not None:
                    following.append(further)
                    if isinstance(further[1], str):
                        line += further[1]
                        continue
                waiting.extendleft(reversed(following))
                yield number, UnusableRecord("a quotation mark that is not closed" if is_open else MISPLACED)
                break


def _columns(line: str) -> tuple[list[str], str]:
    """Returns the names of the columns and the delimiter of CSV, from its first line; [] if it has none."""
    for delimiter in DELIMITERS:
        fields = _fields(line, delimiter)
        row = lower(dict.fromkeys(fields, "x"))
        if image_of(row) and captions_in_object(row):
            return list(map(lower_name, fields)), delimiter
    for delimiter in DELIMITERS:
        fields = _fields(line, delimiter)
        if len(fields) > 1 and _is_image(fields[0]):
            return ["file_name", "text"], delimiter
    return [], ","


def _fields(line: str, delimiter: str, strict: bool = False) -> list[str]:
    """Returns the fields of a row. Raises csv.Error if `strict`, for quotation marks at a wrong place."""
    source = io.StringIO(line, newline="")
    rows = csv.reader(source, delimiter=delimiter, skipinitialspace=True, strict=strict)
    fields = next(rows, [])
    if strict and any(rows):
        raise csv.Error(MISPLACED)
    return fields


def _row(fields: list[str], names: list[str]) -> Row | UnusableRecord:
    """Returns the fields by their names, as a list if several columns have that name. {} for none."""
    if not any(fields) or (len(fields) == 1 and fields[0].startswith("#")):  # empty, or a comment
        return {}
    if any(field.strip() for field in fields[len(names) :]):
        return UnusableRecord("more fields than columns: put captions with delimiters into quotation marks")
    several: dict[str, list[str]] = {}
    for name, field in zip(names, fields, strict=False):
        several.setdefault(name, []).append(field)
    return {name: values[0] if len(values) == 1 else values for name, values in several.items()}
