"""Captions of every source: in a text file, in a JSON object or a row, in a list.

Nothing is guessed about characters. Text that is not in its encoding, or was not when it was saved, is
refused with a reason, since a model would learn the rubbish.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable

from dallegan.data.file_source import UnusableRecord
from dallegan.io.files import parse_object
from dallegan.io.text import decode
from dallegan.tokenizer import is_blank

MAX_CAPTION = 10_000  # characters kept of a caption; no model reads more
# the first group that has a caption is used, with all of its fields
CAPTION_FIELDS = ("text", "texts", "caption", "captions"), ("prompt", "prompts"), ("description",), ("tags",)
NAME_IT = "name its encoding by --data.encoding (of prepare and sample: --encoding)"
Row = dict[str, object]


def clean_captions(value: object) -> list[str]:
    """Returns the usable captions in a string, a number, or a list of them, each once.

    Blank ones are left out, also those of invisible characters alone. Control characters and line ends become
    spaces, what has no UTF-8 form becomes "?", and only the first 10,000 characters are kept. Raises
    UnusableRecord if a caption has U+FFFD, which programs write for a character that they could not read.
    """
    captions = []
    for item in value if isinstance(value, list) else [value]:
        if type(item) is int or (isinstance(item, float) and math.isfinite(item)):
            item = str(item)  # in CSV they are text anyway
        if isinstance(item, str):
            text = re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ufeff]+", " ", item[: 2 * MAX_CAPTION])
            captions.append(text.encode("utf-8", "replace").decode().strip()[:MAX_CAPTION].strip())
    if any("\ufffd" in text for text in captions):
        raise UnusableRecord("a caption with U+FFFD: it was saved in a wrong encoding")
    return list(dict.fromkeys(text for text in captions if not is_blank(text)))


def captions_in_text(data: bytes, encoding: str = "") -> list[str]:
    """Returns the captions in a text file, one a line, [] for none.

    Args:
        data: the contents of the file.
        encoding: what the bytes are if there is no byte order mark; "" for UTF-8.

    Raises:
        UnusableRecord: if the file is not in that encoding, or has damaged captions.
    """
    return clean_captions(re.split(r"\r\n|\r|\n", _decode(data, encoding)))


def captions_in_json(data: bytes, encoding: str = "") -> list[str]:
    """Returns the captions in a file of one JSON object, as `captions_in_text` does."""
    text = _decode(data, encoding)
    try:
        row = parse_object(text)
    except ValueError:
        raise UnusableRecord("not a JSON object") from None
    return captions_in_object(row)


def _decode(data: bytes, encoding: str) -> str:
    try:
        return decode(data, encoding)
    except ValueError as error:
        raise UnusableRecord(str(error).replace("name its encoding", NAME_IT)) from None


def captions_in_object(row: Row) -> list[str]:
    """Returns the captions in an object or a row, [] for none. Raises UnusableRecord for damaged ones."""
    row = lower(row)
    for group in CAPTION_FIELDS:
        values = [row.get(name) for name in group]
        if captions := clean_captions([x for v in values for x in (v if isinstance(v, list) else [v])]):
            return captions
    return []


def lower(row: Row) -> Row:
    """Returns a row whose fields are named in lower case, and with "_" for blanks and hyphens."""
    return {lower_name(name): value for name, value in row.items()}


@functools.lru_cache(4096)
def lower_name(name: str) -> str:
    """Returns the name of a field as `lower` writes it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def fields_of(row: Iterable[str]) -> str:
    """Returns the names of up to twelve fields, for a message."""
    return ", ".join(name[:40] or "''" for name in itertools.islice(row, 12)) or "none"
