"""Pictures in and out: any file to uint8[size, size, 3], arrays to captioned grids and PNGs with their prompt inside."""

import errno
import functools
import io
import itertools
import pathlib
import re
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from dallegan.io.files import write_atomic

MAX_PIXELS = 64_000_000  # larger files are taken for decompression bombs
warnings.filterwarnings("ignore", module=r"PIL\.")  # Pillow warns of sizes and metadata that are dealt with here
# of all that Pillow knows; it goes by the bytes, whatever the name, and hands PostScript to another program
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF")
FONT = pathlib.Path(__file__).parent.parent / "assets" / "NotoSansSC-subset.ttf"


class ImageError(ValueError):
    """A file that is not a usable picture; the message says why."""


def read_image(file: str | pathlib.Path | bytes, size: int) -> np.ndarray:
    """uint8[size, size, 3]: EXIF-rotated, transparency over white, shorter side resized to `size`, centre-cropped.

    Raises ImageError for broken, truncated or huge (> 64 megapixel) files, OSError for those that the file system does not give.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=KINDS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
            image.draft("RGB", (2 * size, 2 * size))  # JPEG: decode at a fraction of the size
            image.load()
            upright = ImageOps.exif_transpose(image)
        return np.asarray(ImageOps.fit(_rgb(upright), (size, size), Image.Resampling.LANCZOS))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except UnidentifiedImageError:  # its message names an address in memory
        raise ImageError("no picture, or of a kind that is not read") from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):  # the file system's; of Pillow's, those that ask for a place that no file has are EINVAL
            raise
        raise ImageError(str(error).splitlines()[0]) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise ImageError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("grey of floating-point numbers, whose white is not known")
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # 16-bit grey: Pillow would clip it
        grey = np.asarray(image, np.float32)
        deep = image.mode != "I" or grey.max() > 255  # of 32 bits it may be either
        shades = np.where(grey == image.info.get("transparency"), 255.0, grey / (257.0 if deep else 1.0))
        return Image.fromarray(shades.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Noto Sans SC (SIL Open Font Licence), cut down to Latin and the GB 2312 level 1 ideographs."""
    return ImageFont.truetype(str(FONT), size)


def _lines(text: str, width: int, size: int, most: int) -> list[str]:
    """Breaks text to a width in pixels: at spaces and around ideographs, and a word that is wider than a line between characters."""
    lines, line = [], ""
    words = re.findall(r"[^\s\u2e80-\u9fff\uff00-\uffef]+\s*|.\s*", text, re.DOTALL)
    wide = lambda word: font(size).getlength(word.rstrip()) > width
    for word in itertools.chain.from_iterable(w if wide(w) else [w] for w in words):
        if line and font(size).getlength((line + word).rstrip()) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    lines.append(line.rstrip())
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip() + "…"]
    return lines


def grid(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str], cell: int = 128) -> Image.Image:
    """Rows of pictures uint8[H, W, 3], each row under its caption. Small pictures are enlarged by whole pixels."""
    size, gap = 15, 4
    columns = max(len(row) for row in rows)
    scale = max(1, cell // rows[0][0].shape[0])
    side = rows[0][0].shape[0] * scale
    width = columns * (side + gap) + gap
    texts = [_lines(text[:400], width - 2 * gap, size, 2) for text in captions]
    heights = [len(t) * (size + 5) + side + 2 * gap for t in texts]
    sheet = Image.new("RGB", (width, sum(heights) + gap), "white")
    draw, y = ImageDraw.Draw(sheet), gap
    for row, text, height in zip(rows, texts, heights, strict=True):
        for i, line in enumerate(text):
            draw.text((gap, y + i * (size + 5) - 2), line, fill="black", font=font(size))
        for i, picture in enumerate(row):
            enlarged = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (gap + i * (side + gap), y + len(text) * (size + 5)))
        y += height
    return sheet


def png(image: Image.Image, info: Mapping[str, str]) -> bytes:
    """A PNG file with `info` as its text metadata."""
    text = PngImagePlugin.PngInfo()
    for key, value in info.items():
        text.add_itxt(key, value.encode("utf-8", "replace").decode())
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def save_png(image: Image.Image, path: str | pathlib.Path, info: Mapping[str, str]) -> None:
    """Writes a PNG; the file appears whole or not at all."""
    write_atomic(path, png(image, info))
