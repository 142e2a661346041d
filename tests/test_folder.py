"""Your own images: every kind of file is read or skipped by name, and only an unusable folder is an error."""

import io
import json
import subprocess

import numpy as np
import pytest
from conftest import faulty, tiny
from PIL import Image

from dallegan.data.folder import Folder
from dallegan.data.pipeline import SIDED, make_dataset, make_source, make_tokenizer
from dallegan.errors import UserError
from dallegan.io.image import ImageError, read_image

RNG = np.random.default_rng(0)


def bytes_of(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(colour=(200, 30, 30), size=(40, 30)):
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize(
    "data",
    [
        bytes_of(plain(), "JPEG", quality=95),
        bytes_of(plain(), "PNG"),
        bytes_of(plain(), "WEBP", lossless=True),
        bytes_of(plain().convert("P"), "PNG"),
        bytes_of(plain().convert("CMYK"), "JPEG", quality=95),
        bytes_of(plain().convert("RGBA"), "PNG"),
    ],
    ids=["jpeg", "png", "webp", "palette", "cmyk", "rgba"],
)
def test_kinds_of_file(data):
    image = read_image(data, 16)
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - (200, 30, 30)).max() < 12


def test_grey_alpha_and_16_bit():
    assert (read_image(bytes_of(Image.new("L", (9, 9), 70), "PNG"), 8) == 70).all()
    clear = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert (read_image(bytes_of(clear, "PNG"), 8) == 255).all()
    keyed = Image.new("P", (9, 9), 0)
    assert (read_image(bytes_of(keyed, "PNG", transparency=0), 8) == 255).all()
    for value in (200, 40_000):  # of 65,535, whatever else is in the image
        deep = Image.fromarray(np.full((9, 9), value, np.uint16))
        assert abs(int(read_image(bytes_of(deep, "PNG"), 8)[0, 0, 0]) - value // 257) <= 1
    assert (read_image(bytes_of(deep, "PNG", transparency=40_000), 8) == 255).all()


def test_exif_rotation_and_centre_crop():
    image = Image.new("RGB", (40, 20), "white")
    image.paste((0, 0, 0), (0, 0, 20, 20))  # left half black
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: the left half is on top
    read = read_image(bytes_of(image, "PNG", exif=exif), 16)
    assert read[:6].max() < 40
    assert read[10:].min() > 215
    wide = Image.new("RGB", (60, 20), "red")
    wide.paste((0, 0, 255), (20, 0, 40, 20))
    assert (read_image(bytes_of(wide, "PNG"), 16)[:, 1:-1] == (0, 0, 255)).all()


def test_an_impossible_offset_is_the_fault_of_the_image(tmp_path):
    (tmp_path / "a.tif").write_bytes(
        b"II+\0\x08\0\0\0" + (2**63 - 2).to_bytes(8, "little")
    )  # a BigTIFF, whose directory is at an impossible offset
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.tif", 8)


def test_broken_files_say_why():
    whole = bytes_of(Image.fromarray(RNG.integers(0, 255, (64, 64, 3), np.uint8)), "PNG")
    for data in (b"", b"rubbish", whole[: len(whole) // 2]):
        with pytest.raises(ImageError):
            read_image(data, 16)
    with pytest.raises(ImageError, match="whose white is not known"):
        read_image(bytes_of(Image.fromarray(np.full((9, 9), 0.5, np.float32)), "TIFF"), 16)
    with pytest.raises(ImageError, match="million"):
        read_image(bytes_of(Image.new("1", (10_000, 7_000)), "PNG"), 16)


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA"])
def test_unexpected_formats_are_not_read(kind, monkeypatch):
    """Pillow hands PostScript to Ghostscript, whatever the file is called."""
    data = bytes_of(plain(), kind)
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("another program is called"))
    with pytest.raises(ImageError, match="is not read"):
        read_image(data, 16)


@pytest.fixture
def folder(tmp_path):
    plain().save(tmp_path / "a.png")
    plain((0, 0, 200)).save(tmp_path / "b.jpg")
    (tmp_path / "sub").mkdir()
    plain((0, 200, 0)).save(tmp_path / "sub" / "c.webp")
    rows = [
        {"file_name": "a.png", "text": ["red", "a red one"]},
        {"file_name": "b.jpg", "text": "blue"},
        {"file_name": "gone.png", "text": "x"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\nnot json\n")
    (tmp_path / "sub" / "c.txt").write_text("green\n绿色\n")
    return tmp_path


def test_captions_from_jsonl_and_txt(folder):
    source = Folder(str(folder), 16)
    assert [p.name for p in source.files] == ["a.png", "b.jpg", "c.webp"]
    assert source.captions(10) == ["red", "a red one", "blue", "green", "绿色"]
    assert source.skipped == {
        "metadata.jsonl:3": "no image: gone.png",
        "metadata.jsonl:4": "not a JSON object",
    }
    rng = np.random.default_rng(0)
    assert {source.example(0, rng).caption for _ in range(30)} == {"red", "a red one"}


def test_captions_from_csv(tmp_path):
    plain().save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(
        'file_name,text\na.png,"one,\ntwo"\na.png,three\nb.png,four\na.png,\n'
    )
    source = Folder(str(tmp_path), 16)
    assert source.captions(9) == ["one, two", "three"]
    reason = "no caption in the row: the fields are file_name, text"
    assert source.skipped == {"metadata.csv:5": "no image: b.png", "metadata.csv:6": reason}


def test_unusable_files_are_skipped_and_named(folder):
    (folder / "broken.png").write_bytes(b"rubbish")
    (folder / "broken.txt").write_text("broken")
    plain().save(folder / "silent.png")
    Image.new("1", (10_000, 7_000)).save(folder / "bomb.png")
    (folder / "bomb.txt").write_text("bomb")
    source = Folder(str(folder), 16)
    assert len(source) == 3
    assert set(source.skipped) == {
        "metadata.jsonl:3",
        "metadata.jsonl:4",
        "broken.png",
        "silent.png",
        "bomb.png",
    }
    assert source.skipped["silent.png"] == "no caption"


def test_unusable_folders_are_one_error(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        Folder(str(tmp_path / "absent"), 16)
    with pytest.raises(UserError, match="no captioned images"):
        Folder(str(tmp_path), 16)
    plain().save(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"no captioned images .*; skipped: 1 x no caption \(a.png\); give them"
    ):
        Folder(str(tmp_path), 16)


def batches(folder, **changes):
    config = tiny(data__source=f"folder:{folder}", batch=4, **changes)
    source = make_source(config)
    return make_dataset(source, make_tokenizer(source, config), config)


def test_an_epoch_visits_every_image_once_and_epochs_differ(folder):
    seen = np.concatenate([batches(folder)[s]["image"][:, 0, 0] for s in range(6)])
    epochs = [tuple(map(tuple, seen[3 * e : 3 * e + 3].tolist())) for e in range(8)]
    assert all(len(set(e)) == 3 for e in epochs)
    assert len(set(epochs)) > 1


@pytest.mark.parametrize("between", [0, 1, 2000])
def test_a_quotation_mark_that_is_not_closed_costs_its_row_alone(tmp_path, between):
    for name in "abcd":
        plain().save(tmp_path / f"{name}.png")
    rows = ["file_name,text", "a.png,one", 'b.png,"two', *(["c.png,three"] * between), 'd.png,"four"']
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    source = Folder(str(tmp_path), 16)
    captions = {source.name(i): source.captions_of(i) for i in range(len(source))}
    assert captions == {"a.png": ["one"], "d.png": ["four"]} | ({"c.png": ["three"]} if between else {})
    assert "metadata.csv:3" in source.skipped


@pytest.mark.parametrize("text", ["a bright red car", "an upright piano", "leftover pizza"])
def test_words_that_hold_a_side_name_none(text):
    assert not SIDED.search(text)
    assert all(map(SIDED.search, ("Left of it", "the rightmost one", "on the right-hand side", "左边")))


def test_mirrored_unless_the_caption_names_a_side(tmp_path):
    image = plain()
    image.paste((0, 0, 0), (0, 0, 20, 30))
    for name, text in (("a", "dark on the left"), ("b", "左边是黑的"), ("c", "two halves")):
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(text)
    config = tiny(data__source=f"folder:{tmp_path}", data__flip=True, batch=3)
    source = make_source(config)
    tokenizer = make_tokenizer(source, config)
    dataset = make_dataset(source, tokenizer, config)
    mirrored = {}
    for step in range(20):
        for image, tokens in zip(dataset[step]["image"], dataset[step]["tokens"], strict=True):
            mirrored.setdefault(tokenizer.decode(tokens), set()).add(bool(image[8, 15].max() < 50))
    assert {len(v) for k, v in mirrored.items() if "halves" in k} == {2}
    assert {len(v) for k, v in mirrored.items() if "halves" not in k} == {1}


def test_an_image_with_a_passing_error_is_not_skipped(tmp_path):
    plain().save(tmp_path / "a.png")
    faulty(tmp_path / "b.png")
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(
        UserError, match=r"^cannot read .*b.png: Input/output error; try again, or remove the file$"
    ):
        Folder(str(tmp_path), 16)
