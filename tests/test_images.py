"""Any file becomes an image or one reason: what a kind is not read says so, and nothing takes too much."""

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageOps

from dallegan.io import image as images
from dallegan.io.image import ImageError, read_image


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, colour, bits=8):
    """Returns a black PNG of any size, compressed in rows. Colour: 0 grey, 6 RGBA."""
    row = b"\0" + bytes(width * {0: 1, 6: 4}[colour] * bits // 8)
    zipper, left, parts = zlib.compressobj(9), height, []
    while left:
        rows = min(left, max(1, 2**22 // len(row)))
        parts.append(zipper.compress(row * rows))
        left -= rows
    parts.append(zipper.flush())
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(parts)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "`git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not read: convert it"),
        (b"\0\0\0\x18ftypheic", "HEIC is not read"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC is not read"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isom", "a video"),
        (b"\x1aE\xdf\xa3\1\0\0\0", "a video"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "PSD"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PDF or PostScript"),
        (b"<!DOCTYPE html>\n<html>", "a web page"),
        (b"\n<HTML><head>404", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "SVG"),
        (b"PK\3\4\x14\0", "zip, 7z, rar or gzip archive"),
        (b"\x1f\x8b\x08\0", "gzip archive"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's raw photo"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf", "AVIF, damaged"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", "AVIF, damaged"),
        (b"\xef\xbb\xbf<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b'{"error": "expired"}', "a text, perhaps a server's error"),
        (b"data:image/png;base64,iVBORw0", "a text, perhaps a server's error or base64"),
        (b"\0" * 600, "nothing but zeros"),
        (b"\0" * 60, "no picture, or of a kind that is not read"),
    ],
)
def test_what_is_not_read_says_what_it_is(tmp_path, data, reason):
    (tmp_path / "a.jpg").write_bytes(data)
    for file in (data, tmp_path / "a.jpg"):
        with pytest.raises(ImageError) as error:
            read_image(file, 16)
        assert reason in str(error.value)


def test_a_pipe_and_a_huge_file_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with open(tmp_path / "b.png", "wb") as file:
        file.truncate(2**28 + 1)
    for name, reason in (("a.png", "not a regular file"), ("b.png", "larger than 268 MB")):
        with pytest.raises(OSError, match=reason):
            read_image(tmp_path / name, 16)


RED = Image.new("RGB", (40, 30), (250, 10, 10))


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (RED, "JPEG", {}),
        (RED, "JPEG", {"progressive": True}),
        (RED.convert("CMYK"), "JPEG", {}),
        (RED, "MPO", {"save_all": True, "append_images": [RED]}),  # as phones and stereo cameras write it
        (RED, "GIF", {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}),
        (RED, "WEBP", {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]}),
        (RED.quantize(), "PNG", {}),
        (RED.quantize(), "BMP", {}),
        (RED, "TIFF", {"compression": "tiff_deflate"}),
        (RED.convert("CMYK"), "TIFF", {}),
        (RED.convert("YCbCr"), "TIFF", {"compression": "jpeg"}),
        (RED, "TIFF", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
        pytest.param(
            RED,
            "AVIF",
            {},
            marks=pytest.mark.skipif("AVIF" not in images.READ_FORMATS, reason="Pillow without AVIF"),
        ),
    ],
)
def test_kinds_that_are_read(image, kind, options):
    found = read_image(encoded(image, kind, **options), 8)
    assert np.abs(found.astype(int) - (250, 10, 10)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "LA", "P", "1", "I;16"])
def test_strips_and_orientation_change_nothing(monkeypatch, orientation, mode):
    """In strips, an image has the same pixels as whole: as Pillow turns and converts it."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (37, 50, 3), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (37, 50), np.uint16))
    else:
        image = image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "PNG", exif=exif)
    whole = read_image(data, 16)
    monkeypatch.setattr(images, "STRIP", 128)
    np.testing.assert_array_equal(read_image(data, 16), whole)
    if mode == "RGB":
        turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(whole, ImageOps.fit(turned, (16, 16), Image.Resampling.LANCZOS))


def test_a_large_image_is_reduced_first(monkeypatch):
    y, x = np.mgrid[:301, :403]
    smooth = np.stack([x * 255 / 403, y * 255 / 301, (x + y) * 255 / 704], -1).astype(np.uint8)
    data = encoded(Image.fromarray(smooth), "PNG")
    whole = read_image(data, 16).astype(int)
    monkeypatch.setattr(images, "LARGE", 2**10)
    monkeypatch.setattr(images, "STRIP", 2**12)
    assert np.abs(read_image(data, 16) - whole).max() <= 4


def test_jpegs_of_many_scans_are_refused():
    whole = encoded(Image.new("RGB", (3000, 3000), "red"), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    assert images._scans(whole) == 10
    for filler in (b"", b"\xff", b"\xff\x01", b"\xff\xd0", b"\xff\0junk", b"\xff\xfe\0\4\xff\xda"):
        many = whole[:-2] + (filler + last) * 300 + whole[-2:]
        assert images._scans(many) == 310
        with pytest.raises(ImageError, match="a JPEG of 3000x3000 pixels in 310 scans, too many to decode"):
            read_image(many, 16)
    motion = whole + last * 300  # what follows the image, for example the video of a phone, is not decoded
    assert images._scans(motion) == 10
    read_image(motion, 16)


MEASURE = """
import resource, sys
from dallegan.io.image import ImageError, read_image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data, before = open(sys.argv[1], "rb").read(), peak()
try:
    reason = read_image(data, 64).shape
except ImageError as error:
    reason = error
print((peak() - before) // (2**20 if sys.platform == "darwin" else 2**10), reason)
"""


@pytest.mark.parametrize(
    ("data", "most", "reason"),
    [
        (lambda: png(1, 64_000_000, 6), 50, "1x64000000 pixels, more than 64 million, or a side over 65535"),
        (lambda: png(5000, 5000, 6), 200, "(64, 64, 3)"),
        (lambda: png(5000, 5000, 0, 16), 150, "(64, 64, 3)"),
        (
            lambda: encoded(Image.new("RGBA", (5700, 5700)), "WEBP", lossless=True, quality=0, method=0),
            50,
            "32 million",
        ),
    ],
)
def test_memory_is_bounded(tmp_path, data, most, reason):
    """Of a process of its own, in MB."""
    (tmp_path / "a").write_bytes(data())
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "a")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    peak, _, said = done.stdout.partition(" ")
    assert int(peak) < most
    assert reason in said
