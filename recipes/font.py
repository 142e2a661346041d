"""The font that ships, for captions: Noto Sans SC, cut to GB 2312, with Noto Sans for Europe's letters.

Needs fonttools, and the two fonts of weight 400, which `npm pack @expo-google-fonts/noto-sans-sc` and
`npm pack @expo-google-fonts/noto-sans` bring (SIL Open Font Licence).

    python recipes/font.py NotoSansSC_400Regular.ttf NotoSans_400Regular.ttf NotoSansSC-subset.ttf

512 units per em instead of 1000 save 0.16 MB, and are 1/34 of a pixel in the captions; 256 would show.
"""

import pathlib
import sys
import tempfile
from collections.abc import Set
from dataclasses import dataclass
from typing import Annotated

import tyro
from fontTools.merge import Merger
from fontTools.subset import Options, Subsetter, load_font
from fontTools.ttLib.scaleUpem import scale_upem

from dallegan.io.cli import parse, run

UNITS = 512  # per em
LATIN = {*range(0x20, 0x100)}
# more Latin, marks, Greek, Cyrillic; punctuation, currencies, letter-like signs
EUROPE = {*range(0x100, 0x530), *range(0x1E00, 0x1F00), *range(0x2000, 0x2150)}
COPYRIGHT = (
    "(c) 2014-2021 Adobe (http://www.adobe.com/), with Reserved Font Name 'Source'. "
    "Copyright 2022 The Noto Project Authors (https://github.com/notofonts/latin-greek-cyrillic)"
)


@dataclass(frozen=True)
class Args:
    """Write the font of captions."""

    chinese: Annotated[pathlib.Path, tyro.conf.Positional]  # Noto Sans SC
    european: Annotated[pathlib.Path, tyro.conf.Positional]  # Noto Sans
    out: Annotated[pathlib.Path, tyro.conf.Positional]  # the font to write


def gb2312() -> set[int]:
    """Returns the code points of GB 2312: 6,763 ideographs, kana, signs."""
    pairs = (bytes((row, cell)) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    return {ord(character) for pair in pairs for character in pair.decode("gb2312", "ignore")}


def cut(path: pathlib.Path, characters: Set[int], out: pathlib.Path) -> set[int]:
    """Writes a font of those of `characters` that a font has, and returns them."""
    options = Options(layout_features=[], notdef_outline=True, hinting=False, glyph_names=False)
    options.drop_tables += ["BASE", "GDEF", "GPOS", "GSUB", "STAT", "vhea", "vmtx"]
    font = load_font(str(path), options)
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=characters)
    subsetter.subset(font)
    scale_upem(font, UNITS)
    font.save(out)
    return set(font.getBestCmap())


def main() -> None:
    """Parses the command line and writes the font."""
    args = parse(Args, "recipes/font.py")
    with tempfile.TemporaryDirectory() as folder:
        parts = [pathlib.Path(folder) / name for name in ("chinese.ttf", "european.ttf")]
        taken = cut(args.chinese, (gb2312() | LATIN) - {*range(0x370, 0x530)}, parts[0])
        cut(args.european, (EUROPE | LATIN) - taken, parts[1])
        font = Merger().merge([str(part) for part in parts])
    names = {0: COPYRIGHT, 1: "Noto Sans SC subset", 3: "Noto Sans SC subset", 4: "Noto Sans SC subset"}
    for number, text in names.items():
        font["name"].setName(text, number, 3, 1, 0x409)
    font.save(args.out)


if __name__ == "__main__":
    sys.exit(run(main))
