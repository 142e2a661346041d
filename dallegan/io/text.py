"""Text from outside: decoded without guessing, and shown without what would act on a terminal."""

import codecs
import unicodedata
from collections.abc import Iterable
from typing import TextIO

from dallegan.errors import UserError

# UTF-32 first: the mark of UTF-16 is the beginning of its mark
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARKLESS = {"utf-16": "utf-16-le", "utf-32": "utf-32-le"}  # without a mark; readers of lines would raise
UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")  # Unicode's categories of what `shown` escapes


def find_encoding(head: bytes, encoding: str = "") -> str:
    """Returns the encoding that a byte order mark at the head of a file names; else `encoding`, or UTF-8."""
    named = encoding or "utf-8"
    known = MARKLESS.get(codecs.lookup(named).name, named)
    return next((name for mark, name in MARKS if head.startswith(mark)), known)


def check_encoding(encoding: str, flag: str = "--data.encoding") -> None:
    """Raises UserError unless Python knows an encoding of that name that decodes any bytes to text."""
    try:
        name = codecs.lookup(encoding or "utf-8").name
        bytes(range(256)).decode(name, "replace")
        if name in ("idna", "punycode"):  # names of hosts, not texts; Python 3.13 decodes anything by them
            raise LookupError(name)
    except (LookupError, ValueError):
        known = "utf-8, gbk, gb18030, big5, shift_jis, cp1252, latin-1 or utf-16-le"
        raise UserError(f"{flag} {encoding}: no such encoding; for example {known}") from None


def decode(data: bytes, encoding: str = "") -> str:
    """Returns the text of a file, decoded strictly, without its byte order mark.

    Args:
        data: the contents of the file.
        encoding: what the bytes are if there is no byte order mark; "" for UTF-8.

    Raises:
        ValueError: if the bytes are not in that encoding. The message is one line for the user.
    """
    name = find_encoding(data, encoding)
    try:
        text = data.decode(name)
    except UnicodeError as error:
        place = f" (byte {error.start})" if isinstance(error, UnicodeDecodeError) else ""
        raise ValueError(f"not in {name.removesuffix('-sig').upper()}{place}: name its encoding") from None
    if "\0" in text:
        raise ValueError("has NUL characters: UTF-16 without a byte order mark, or not a text")
    return text


def shown(text: object, most: int = 400) -> str:
    r"""Returns a text in one line for a terminal or a log, cut to about `most` characters.

    Control characters, marks that reverse the direction and lone surrogates are escaped ("\x1b", "\n"), since
    a terminal would act on them, and a log would have forged lines.
    """
    whole = str(text)
    cut = whole if len(whole) <= most else f"{whole[: most // 2]} ... {whole[-most // 2 :]}"
    escape = lambda c: c.encode("unicode_escape").decode() if unicodedata.category(c) in UNSEEN else c
    return "".join(map(escape, cut))


def listed(skipped: Iterable[tuple[str, str]]) -> str:
    """Returns the lines of a skipped.log for names and reasons."""
    return "".join(f"{shown(name, 4096)}\t{shown(reason)}\n" for name, reason in skipped)


def say(text: object, to: TextIO | None = None, most: int = 2**14) -> None:
    """Prints a text as `shown` returns it, to stdout by default."""
    print(shown(text, most), file=to)
