"""Bad data never crash: 3,500 damaged files, lines, captions and records.

Each is read, skipped by name, or one UserError.
"""

import io
import json

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_arrayrecord import write
from test_tfds import Toy
from test_webdataset import image_file, sample, write_tar

from dallegan.data.arrayrecord import ArrayRecord
from dallegan.data.captions import MAX_CAPTION, clean_captions
from dallegan.data.file_source import READ_ERRORS
from dallegan.data.folder import Folder
from dallegan.data.storybook.scenes import Storybook
from dallegan.data.tfds import Tfds
from dallegan.data.webdataset import WebDataset
from dallegan.errors import UserError
from dallegan.io.image import ImageError, read_image
from dallegan.tokenizer import Tokenizer


def times(n):
    """Tries the same n examples at each run."""
    return settings(
        max_examples=n,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4)
cuts = st.one_of(st.just(1.0), st.floats(0, 1))


def damaged(whole, edits, cut=1.0, pad=False):
    """Returns the bytes with some changed, and all but the first part cut off or blanked."""
    data = bytearray(whole)
    for place, value in edits:
        data[int(place * len(data))] = value
    kept = bytes(data[: int(cut * len(data))])
    return kept.ljust(len(data), b"\0") if pad else kept


def files():
    image = Image.open(io.BytesIO(image_file(0)))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    for kind, shown, options in (
        ("JPEG", image, {"exif": exif}),
        ("JPEG", image, {"progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("PNG", image, {}),
        ("PNG", deep, {}),
        ("PNG", image.convert("P"), {"transparency": 3}),
        ("WEBP", image.convert("RGBA"), {}),
        ("GIF", image, {"save_all": True, "append_images": [image]}),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("BMP", image, {}),
        ("PNG", image, {"save_all": True, "append_images": [image]}),
    ):
        file = io.BytesIO()
        shown.save(file, kind, **options)
        yield file.getvalue()


FILES = list(files())


def visit(make, of):
    """Reads all images: each is read or skipped by name. If fewer than `of` are read, there is a reason."""
    errors, read = [], 0
    try:
        source = make()
        for i in range(len(source)):
            try:
                image, captions = source.load(i)
            except READ_ERRORS as error:
                source.skip(source.name(i), error)
                continue
            read += 1
            assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
            assert all(caption.strip() for caption in captions)
        for i in range(len(source)):
            assert source.example(i, np.random.default_rng(i)).image.shape == (8, 8, 3)
    except UserError as error:
        errors.append(str(error))
    else:
        errors += source.skipped.values()
    assert read >= of or errors
    assert all(error and "\n" not in error for error in errors)


@times(1000)
@given(st.sampled_from(FILES), edits, cuts)
def test_images(whole, edits, cut):
    why = "none"
    try:
        assert read_image(damaged(whole, edits, cut), 8).shape == (8, 8, 3)
    except ImageError as error:
        why = str(error)
    assert why
    assert " at 0x" not in why


@pytest.mark.parametrize("size", [(1, 9000), (9000, 1), (1, 1)])
def test_absurd_shapes(size):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    assert (read_image(file.getvalue(), 8) == (255, 0, 0)).all()


@times(300)
@given(edits, cuts, st.sampled_from(["ustar", "pax"]), st.booleans())
def test_tars(tmp_path, edits, cut, kind, aimed):
    name = "x" * 120 + "/" if kind == "pax" else ""
    whole = write_tar(
        tmp_path / "a.tar", [(name + n, d) for i in range(3) for n, d in sample(i)]
    ).read_bytes()
    if aimed:  # at the numbers and types in the first headers, which have no padding
        edits = [(place * 160 / len(whole) + 100 / len(whole), value) for place, value in edits]
    (tmp_path / "a.tar").write_bytes(damaged(whole, edits, cut))
    visit(lambda: WebDataset(str(tmp_path / "a.tar"), 8), 3)


@times(200)
@given(st.lists(st.tuples(edits, cuts), min_size=4, max_size=4), edits, cuts, st.binary(max_size=40))
def test_folders(tmp_path, changes, edits, cut, junk):
    lines = "\n".join(
        json.dumps({"file_name": f"{i}.png", "text": ["a red one", "一个"]}) for i in range(4)
    ).encode()
    (tmp_path / "metadata.jsonl").write_bytes(damaged(lines, edits, cut) + junk)
    for i, change in enumerate(changes):
        (tmp_path / f"{i}.png").write_bytes(damaged(FILES[i], *change))
    visit(lambda: Folder(str(tmp_path), 8), 4)
    visit(lambda: Folder(str(tmp_path), 8, check=False), 4)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.characters()),
    lambda x: st.lists(x) | st.dictionaries(st.text(), x),
    max_leaves=6,
)


def test_invisible_captions_are_none(tmp_path):
    """A text that a model cannot be asked for is no caption: sample grids and evaluation ask for captions."""
    invisible = ["\u200b", "\ufeff", "\u2060 \u00ad", "\0", "\x07", "", " "]
    assert clean_captions([*invisible, "a cat", "猫"]) == ["a cat", "猫"]
    assert clean_captions("\u200b" * MAX_CAPTION + "a cat") == []
    assert clean_captions("👨\u200d👩\u200d👧") == ["👨\u200d👩\u200d👧"]


@pytest.mark.parametrize(("error", "kept", "tries"), [(5, 2, 3), (5, 9, 4), (2, 9, 1)])
def test_an_error_that_may_pass_is_retried(tmp_path, monkeypatch, error, kept, tries):
    """After an I/O error (5) an image is tried three more times, after a missing file (2) it is not."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(image_file(i))
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    source, waited, asked = Folder(str(tmp_path), 8, check=False), [], []
    monkeypatch.setattr("time.sleep", waited.append)
    load = source.load

    def away(index):
        if index == 0 and not asked.append(index) and len(asked) <= kept:
            raise OSError(error, "away")
        return load(index)

    monkeypatch.setattr(source, "load", away)
    caption = source.example(0, np.random.default_rng(0)).caption
    assert caption == ("number 0" if kept < tries else "number 1")
    assert (len(asked), waited) == (tries, [1, 4, 16][: tries - 1])
    assert list(source.skipped) == ([] if kept < tries else ["0.png"])


def test_if_nothing_can_be_read_it_is_reported_soon(tmp_path, monkeypatch):
    for i in range(9):
        (tmp_path / f"{i}.png").write_bytes(image_file(i))
        (tmp_path / f"{i}.txt").write_text(f"number {i}")
    source, waited = Folder(str(tmp_path), 8, check=False), []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr(
        "dallegan.data.folder.read_image", lambda *_: (_ for _ in ()).throw(OSError(5, "away"))
    )
    with pytest.raises(UserError, match="9 images in a row cannot be read"):
        source.example(0, np.random.default_rng(0))
    assert waited == [1, 4, 16]


TOKENIZER = Tokenizer.train(Storybook(16).captions(50), 500, 12)


@times(200)
@given(json_values | st.text(st.characters(categories=["Cs", "Cc", "Lo", "Zs"])).map(lambda t: t * 3000))
def test_captions(tmp_path, value):
    for text in clean_captions(value):
        assert 0 < len(text.encode()) <= 4 * MAX_CAPTION
        assert TOKENIZER.encode(text, quiet=True).shape == (12,)
    write_tar(
        tmp_path / "a.tar",
        [("a.png", image_file(0)), ("a.json", json.dumps({"caption": value}).encode()), *sample(1)],
    )
    visit(lambda: WebDataset(str(tmp_path / "a.tar"), 8), 2)


@times(160)
@given(edits, cuts, json_values, edits, cuts)
def test_array_records(tmp_path, edits, cut, value, inside, end):
    whole = msgpack.packb({"image": image_file(0), "captions": ["one", "two"]})
    about = write(
        tmp_path,
        [
            whole,
            damaged(whole, inside, end),
            msgpack.packb({"image": image_file(1), "captions": value}, unicode_errors="surrogatepass"),
            whole,
        ],
    )
    path = tmp_path / about["shards"][0]["name"]
    visit(lambda: ArrayRecord(str(tmp_path), 8), 4)
    path.write_bytes(damaged(path.read_bytes(), edits, cut, pad=True))
    visit(lambda: ArrayRecord(str(tmp_path), 8), 4)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    Toy(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@times(60)
@given(edits, cuts, st.lists(st.tuples(edits, cuts), min_size=8, max_size=8))
def test_tensorflow_datasets(toy, edits, cut, inside):
    source = Tfds(f"toy?data_dir={toy}", 8)
    records = [source._data[i] for i in range(8)]
    source._data = [damaged(record, *change) for record, change in zip(records, inside, strict=True)]
    visit(lambda: source, 8)
    path = next((toy / "toy" / "1.0.0").glob("toy-train*"))
    whole = path.read_bytes()
    path.write_bytes(damaged(whole, edits, cut, pad=cut > 0.5))
    visit(lambda: Tfds(f"toy?data_dir={toy}", 8), 8)
    path.write_bytes(whole)
