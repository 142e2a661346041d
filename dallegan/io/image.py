"""Image files: any file to uint8[size, size, 3], and images to PNG and WebP files that say what they show."""

import errno
import functools
import io
import itertools
import json
import pathlib
import re
import subprocess
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np
import PIL.features
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from dallegan.io.files import open_regular, parse_object, read_file, write_atomic

Format = Literal["png", "webp"]  # of the files that are written; both are lossless

MAX_BYTES = 2**28  # of an image file
MAX_PIXELS = 64_000_000  # larger images are taken for decompression bombs
MAX_SIDE = 65_535  # pixels, as JPEG has; a row of Pillow takes 70 bytes however short it is
MAX_SCANS = 20  # of a JPEG of MAX_PIXELS: each takes time, and few bytes
LARGE, STRIP = 2**24, 2**22  # pixels from which an image is reduced before it is resized; pixels of a strip
# a few of Pillow's formats: it goes by the bytes, not the name, and would run another program on PostScript
AVIF = ["AVIF"] if PIL.features.check("avif") else []
READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", *AVIF)
MARKER = re.compile(rb"\xff+([^\0\1\xd0-\xd7\xff])")  # of a segment of a JPEG, which has a length
CONVERT = "is not read: convert it to PNG or JPEG, for example with"
# what else may be found in place of an image or an archive
FOREIGN = (
    (rb"\Z", "an empty file"),
    (rb"version https://git-lfs", "a Git LFS pointer: `git lfs pull` fetches the file itself"),
    (rb"....ftyp(?:avi[fs]|.{8}(?:.{4})*?avi[fs])", "AVIF, damaged or new to this Pillow: update it"),
    (rb"....ftypcrx", f"a camera's raw photo {CONVERT} darktable"),
    (rb"....ftyp(?:hei|hev|mif1|msf1)", f"HEIC {CONVERT} heif-convert"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", f"a video {CONVERT} ffmpeg"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", f"JPEG XL {CONVERT} djxl"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", f"JPEG 2000 {CONVERT} opj_decompress"),
    (rb"8BPS", f"PSD {CONVERT} ImageMagick"),
    (rb"\s*%PDF|%!PS", f"PDF or PostScript {CONVERT} pdftoppm"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?:svg|\?xml.*<svg)", f"SVG {CONVERT} rsvg-convert"),
    (rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype html|html)", "a web page, perhaps a server's error"),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x1f\x8b", "a zip, 7z, rar or gzip archive: unpack it"),
    (rb"\0{512}", "nothing but zeros, perhaps a download that broke off"),
    (rb"[\t\n\r\x20-\x7e]{9}", "a text, perhaps a server's error or base64"),
)
FONT = pathlib.Path(__file__).parent.parent / "assets" / "NotoSansSC-subset.ttf"
FONT_SIZE, GAP, LINE = 15, 4, 20  # of `grid`, in pixels


class ImageError(ValueError):
    """The error of a file that is not a usable image. The message says why."""


def foreign(head: bytes) -> str:
    """Returns what an unreadable file is by its first bytes, and what to do; "" if that is unknown."""
    return next((what for magic, what in FOREIGN if re.match(magic, head[:512], re.DOTALL)), "")


def read_image(file: str | pathlib.Path | bytes, size: int) -> np.ndarray:
    """Returns uint8[size, size, 3], the image of a file.

    It is turned as its EXIF says, and transparent pixels become white. The shorter side is resized to `size`
    pixels, and the longer one is cropped to its centre.

    Raises:
        ImageError: if the file is broken, truncated, or not an image; if it has over 64 megapixels (WebP 32),
            a side over 65,535 pixels, or very many scans.
        OSError: if the file system does not give the file, or it is larger than 268 MB.
    """
    data = file if isinstance(file, bytes) else read_file(file, MAX_BYTES)
    try:
        return np.asarray(ImageOps.fit(_decode(data, size), (size, size), Image.Resampling.LANCZOS))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except UnidentifiedImageError:  # its message holds an address in memory
        raise ImageError(foreign(data) or "no picture, or of a kind that is not read") from None
    except OSError as error:
        # the system's errors have a number; Pillow's have none, or EINVAL if they seek too far back
        if error.errno not in (None, errno.EINVAL):
            raise
        raise ImageError(str(error).splitlines()[0]) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise ImageError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


def _decode(data: bytes, size: int) -> Image.Image:
    """Returns the upright RGB image of a file, reduced in part if it is large."""
    with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
        width, height = image.size
        most = MAX_PIXELS // 2 if image.format == "WEBP" else MAX_PIXELS  # its decoder holds four copies
        if width * height > most or max(width, height) > MAX_SIDE:
            limit = f"{most // 10**6} million, or a side over {MAX_SIDE}"
            raise ImageError(f"{width}x{height} pixels, more than {limit}")
        if data.startswith(b"\xff\xd8") and (scans := _scans(data)) * width * height > MAX_SCANS * MAX_PIXELS:
            raise ImageError(f"a JPEG of {width}x{height} pixels in {scans} scans, too many to decode")
        image.draft("RGB", (2 * size, 2 * size))  # JPEG: decode at a fraction of the size
        image.load()
        small = _reduced(image, size)
    ImageOps.exif_transpose(small, in_place=True)
    return small


def _scans(data: bytes) -> int:
    """Returns the number of scans of a JPEG file."""
    place, scans = 2, 0
    while (found := MARKER.search(data, place)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans


def _reduced(image: Image.Image, size: int) -> Image.Image:
    """Returns an image as RGB, made in strips, since copies of a large one would take a gigabyte.

    A large image is also reduced by a whole factor that leaves three times `size`.
    """
    (width, height), exif = image.size, image.getexif()
    factor = max(1, min(width, height) // (3 * size)) if width * height > LARGE else 1
    # mode "I" has 32 bits for either range
    deep = image.mode != "I" or cast(tuple[int, int], image.getextrema())[1] > 255
    rows = max(1, STRIP // (width * factor)) * factor
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        whole.paste(_to_rgb(strip, deep).reduce(factor), (0, top // factor))
    whole.getexif()[ExifTags.Base.Orientation] = exif.get(ExifTags.Base.Orientation, 1)
    return whole


def _to_rgb(image: Image.Image, is_16_bit: bool) -> Image.Image:
    if image.mode in ("F", "LAB"):
        kind = {"F": "grey of floating-point numbers, whose white is not known", "LAB": "Lab colours"}
        raise ImageError(f"{kind[image.mode]}: convert it to 8-bit sRGB")
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):  # 16-bit grey, which Pillow would clip
        grey = np.asarray(image, np.float32)
        shades = np.where(grey == image.info.get("transparency"), 255.0, grey / (257.0 if is_16_bit else 1.0))
        return Image.fromarray(shades.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def open_image(path: pathlib.Path) -> np.ndarray:
    """Returns uint8[H, W, 3], the pixels of a file that was written here."""
    with Image.open(path, formats=READ_FORMATS) as image:
        return np.asarray(image.convert("RGB"))


@functools.cache
def font(size: int, file: str = str(FONT), index: int = 0) -> ImageFont.FreeTypeFont:
    """Returns a font; by default the shipped one, Noto Sans SC (OFL) cut to GB 2312 and Europe's letters."""
    return ImageFont.truetype(file, size, index)


def _has(face: ImageFont.FreeTypeFont, character: str) -> bool:
    """Returns whether a font has a character; it draws all that it lacks alike."""
    drawn, box = face.getmask(character), face.getmask("\U0010fffe")
    return bytes(drawn) != bytes(box)  # type: ignore[call-overload]  # a buffer


@functools.cache
def _system_font(block: int, size: int) -> ImageFont.FreeTypeFont:
    """Returns the font that fontconfig finds for 128 characters, else the shipped one."""
    command = ["fc-match", "-f", "%{file}\n%{index}", f":charset={128 * block:x}-{128 * block + 127:x}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        file, index = found.split("\n")
        return font(size, file, int(index))
    except (OSError, ValueError, subprocess.SubprocessError):  # OSError for emoji of one size
        return font(size)


@functools.lru_cache(2**14)
def _font_of(character: str, size: int) -> ImageFont.FreeTypeFont:
    """Returns a font that has a character, else the shipped one, which draws a box for it."""
    if _has(font(size), character):
        return font(size)
    other = _system_font(ord(character) // 128, size)
    return other if _has(other, character) else font(size)


def split_by_font(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Splits a text into pieces of one font each. Marks and spaces stay with the letters before them."""
    pieces: list[tuple[str, ImageFont.FreeTypeFont]] = []
    for character in unicodedata.normalize("NFC", text):
        follows = pieces and unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf", "Zs")
        face = pieces[-1][1] if follows else _font_of(character, size)
        if pieces and pieces[-1][1] is face:
            character = pieces.pop()[0] + character
        pieces.append((character, face))
    return pieces


def text_width(text: str, size: int) -> float:
    """Returns the width of a text in pixels."""
    return sum(face.getlength(piece) for piece, face in split_by_font(text, size))


def wrap(text: str, width: int, size: int, most: int) -> list[str]:
    """Breaks a text into at most `most` lines of `width` pixels, in the font of that size.

    Lines break at spaces and around ideographs; a word that is wider than a line breaks between characters.
    The last line ends with "…" if text is left over.
    """
    lines, line = [], ""
    words = re.findall(r"[^\s\u2e80-\u9fff\uff00-\uffef]+\s*|.\s*", text, re.DOTALL)
    is_wide = lambda word: text_width(word.rstrip(), size) > width
    for word in itertools.chain.from_iterable(w if is_wide(w) else [w] for w in words):
        if line and text_width((line + word).rstrip(), size) > width:
            lines.append(line.rstrip())
            line = ""
        line += word
    lines.append(line.rstrip())
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip() + "…"]
    return lines


def grid(rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str], cell: int = 128) -> Image.Image:
    """Draws rows of images uint8[H, W, 3], each row under its caption.

    Images smaller than `cell` pixels are enlarged by a whole factor, so that each pixel stays a square.
    """
    columns = max(len(row) for row in rows)
    side = rows[0][0].shape[0] * max(1, cell // rows[0][0].shape[0])
    width = columns * (side + GAP) + GAP
    texts = [wrap(" ".join(text[:400].split()), width - 2 * GAP, FONT_SIZE, 2) for text in captions]
    heights = [len(lines) * LINE + side + 2 * GAP for lines in texts]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    y = GAP
    for row, lines, height in zip(rows, texts, heights, strict=True):
        strip = Image.new("RGB", (width, len(lines) * LINE), "white")  # holds what reaches far up or down
        for i, line in enumerate(lines):
            x, baseline = float(GAP), i * LINE + FONT_SIZE + 1
            for piece, face in split_by_font(line, FONT_SIZE):
                ImageDraw.Draw(strip).text((x, baseline), piece, fill="black", font=face, anchor="ls")
                x += face.getlength(piece)
        sheet.paste(strip, (0, y))
        for i, image in enumerate(row):
            enlarged = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (GAP + i * (side + GAP), y + len(lines) * LINE))
        y += height
    return sheet


def encode_image(image: Image.Image, info: Mapping[str, str], form: Format = "png") -> bytes:
    """Returns a PNG or lossless WebP file that carries `info`.

    A PNG has `info` as its text chunks, a WebP as JSON in the image description of its EXIF.
    """
    file = io.BytesIO()
    if form == "webp":
        image.save(file, "WEBP", lossless=True, exif=_exif(info))
    else:
        text = PngImagePlugin.PngInfo()
        for key, value in info.items():
            text.add_itxt(key, value.encode("utf-8", "replace").decode())
        image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def encode_animation(frames: Sequence[Image.Image], info: Mapping[str, str], milliseconds: int) -> bytes:
    """Returns a lossless WebP animation that repeats forever, with `info` as in `encode_image`."""
    file = io.BytesIO()
    first, *others = frames
    options = {"duration": milliseconds, "loop": 0, "lossless": True, "exif": _exif(info)}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return file.getvalue()


def _exif(info: Mapping[str, str]) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = json.dumps(info)  # EXIF text is ASCII, as JSON is by default
    return exif


def read_info(path: pathlib.Path) -> dict[str, str]:
    """Returns the `info` that a PNG or WebP file was written with; {} for any other file."""
    try:
        with open_regular(path) as file, Image.open(file, formats=READ_FORMATS) as image:
            if image.format == "PNG":
                image.load()  # text chunks may follow the pixels
                return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
            return parse_object(image.getexif().get(ExifTags.Base.ImageDescription) or "{}")
    except Exception:  # Pillow's decoders raise nearly anything on files that are not images
        return {}


def save_png(image: Image.Image, path: str | pathlib.Path, info: Mapping[str, str]) -> None:
    """Writes a PNG with `info` as its text chunks. The file appears whole or not at all. Raises OSError."""
    write_atomic(path, encode_image(image, info))
