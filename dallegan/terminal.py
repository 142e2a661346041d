"""Pictures in terminals that can show them."""

import base64
import os
from collections.abc import Mapping


def inline(picture: bytes, environment: Mapping[str, str] = os.environ) -> str:
    """What to print so that a PNG file appears in this terminal; "" where it cannot.

    By kitty's graphics protocol (https://sw.kovidgoyal.net/kitty/graphics-protocol) or iTerm2's (https://iterm2.com/documentation-images.html).
    """
    program, text = environment.get("TERM_PROGRAM", ""), base64.b64encode(picture).decode()
    if "TMUX" in environment or environment.get("TERM", "").startswith("screen"):
        return ""  # which pass neither on
    if "KITTY_WINDOW_ID" in environment or program == "ghostty":
        pieces = [text[i : i + 4096] for i in range(0, len(text), 4096)]
        first = lambda i: "f=100,a=T," if i == 0 else ""
        return "".join(f"\x1b_G{first(i)}m={int(i < len(pieces) - 1)};{piece}\x1b\\" for i, piece in enumerate(pieces)) + "\n"
    if program in ("iTerm.app", "WezTerm", "mintty", "vscode"):
        return f"\x1b]1337;File=inline=1;size={len(picture)}:{text}\a\n"
    return ""
