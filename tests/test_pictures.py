"""Image files say what they show, stay in their folder, and are neither drawn twice nor lost."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from conftest import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dallegan.commands import save_images
from dallegan.commands.save_images import SamplingOptions, slug, write_animations, write_grid, write_images
from dallegan.errors import UserError
from dallegan.io import image as image_module
from dallegan.io.image import font, grid, open_image, read_info, split_by_font, text_width, wrap
from dallegan.sampling import Model

BEAR, CAR = "一只棕色的大熊站在雪地里", "a small red car in the desert"


def draw(model, prompts, out, **options):
    return list(write_images(model, prompts, out, SamplingOptions(**{"n": 2} | options)))


@pytest.mark.parametrize("form", ["png", "webp"])
def test_pictures_say_what_they_are(model, tmp_path, form):
    written = draw(model, [BEAR, "../../evil/.. path"], tmp_path / "out", seed=3, format=form)
    assert [(w.prompt, w.index, w.new) for w in written] == [
        (p, k, True) for p in (BEAR, "../../evil/.. path") for k in (0, 1)
    ]
    assert {w.path.parent for w in written} == {tmp_path / "out"}
    assert {w.path.suffix for w in written} == {f".{form}"}
    info = read_info(written[0].path)
    assert info == {
        "prompt": BEAR,
        "seed": "3",
        "index": "0",
        "truncation": "1.0",
        "best_of": "1",
        "model": model.digest,
    }
    np.testing.assert_array_equal(open_image(written[1].path), model.sample(BEAR, n=2, seed=3)[1])


@pytest.mark.filterwarnings("ignore:caption of")
@pytest.mark.parametrize("form", ["png", "webp"])
def test_a_file_has_room_for_any_prompts(model, tmp_path, form):
    prompts = ["😀" * 9000, *("熊" * 200 + str(i) for i in range(64))]
    written = draw(model, prompts, tmp_path, n=1, format=form)
    assert [read_info(w.path)["prompt"] for w in written] == prompts
    sheet = write_grid(model, written, tmp_path, SamplingOptions(n=1, format=form), 16)
    assert json.loads(read_info(sheet)["prompt"]) == prompts
    assert write_grid(model, written, tmp_path, SamplingOptions(n=1, format=form), 16) == sheet
    assert not any(w.new for w in draw(model, prompts, tmp_path, n=1, format=form))


@pytest.mark.parametrize(("prompts", "n", "cell"), [(1, 40, 900), (64, 2, 500), (3, 20, 128)])
def test_a_sheet_has_the_size_that_its_format_holds(model, tmp_path, monkeypatch, prompts, n, cell):
    monkeypatch.setattr(save_images, "MAX_SIDE", 3000)  # sooner
    written = draw(model, [f"a cat {i}" for i in range(prompts)], tmp_path, n=n)
    with Image.open(write_grid(model, written, tmp_path, SamplingOptions(n=n), cell)) as sheet:
        width, height = sheet.size
    assert max(width, height) <= 3000
    assert width >= min(n, save_images.GRID_COLUMNS) * 16


def test_what_is_there_is_not_drawn_again(model, tmp_path, monkeypatch):
    """A command that was stopped goes on, and a command that has ended has nothing to do."""
    first = draw(model, [BEAR], tmp_path)
    again = draw(model, [CAR, BEAR], tmp_path)
    assert [w.new for w in again] == [True, True, False, False]
    assert {w.path for w in first} == {w.path for w in again if not w.new}
    monkeypatch.setattr(Model, "stream", None)
    assert [w.path for w in draw(model, [BEAR, CAR], tmp_path)] == [w.path for w in again[2:] + again[:2]]


def test_no_other_file_is_overwritten_unless_told(model, tmp_path):
    written = draw(model, [BEAR], tmp_path)
    Image.new("RGB", (3, 3)).save(written[0].path)
    written[1].path.write_text("mine")
    assert [w.path.stem[-2:] for w in draw(model, [BEAR], tmp_path)] == ["-2", "-2"]
    assert written[1].path.read_text() == "mine"
    assert [w.path.stem[-2:] for w in draw(model, [BEAR], tmp_path, truncation=0.5)] == ["-3", "-3"]
    assert [w.path for w in draw(model, [BEAR], tmp_path, overwrite=True)] == [w.path for w in written]
    assert read_info(written[1].path)["prompt"] == BEAR


def test_a_prompt_that_comes_twice_is_drawn_once(model, tmp_path):
    written = draw(model, [BEAR, CAR, BEAR], tmp_path)
    assert [w.path for w in written[4:]] == [w.path for w in written[:2]]
    assert [w.new for w in written] == [True] * 4 + [False] * 2
    assert len(list(tmp_path.iterdir())) == 4


def test_the_order_and_number_of_prompts_do_not_matter(model, tmp_path):
    prompts = [f"a cat number {i}" for i in range(7)]
    for block, order, folder in ((64, prompts, "a"), (2, prompts[::-1], "b")):
        list(write_images(model, order, tmp_path / folder, SamplingOptions(n=3), block=block))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("form", ["png", "webp"])
def test_scores(model, tmp_path, form):
    drawn, found = (draw(model, [BEAR, CAR], tmp_path, score=True, format=form) for _ in range(2))
    direct = model.score(np.stack([open_image(w.path) for w in drawn]), [w.prompt for w in drawn])
    for written in (drawn, found):
        np.testing.assert_allclose([w.score for w in written], direct, atol=1e-5)
    assert all(w.score is None for w in draw(model, [BEAR], tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "一只棕色的大熊站在雪地里" * 3 + " 白",
        "a big brown bear standing in the snow",
        "x" * 99,
        "大熊bear在雪地里 snow，好" * 3,
    ],
)
def test_captions_are_broken_to_the_width_and_nothing_is_lost(text):
    lines = wrap(text, 200, 15, 99)
    assert max(text_width(line, 15) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap(text, 200, 15, 1) == ([lines[0] + "…"] if len(lines) > 1 else lines)


def dark(caption):
    """The dark pixels of a caption on a sheet."""
    white = np.full((128, 400, 3), 255, np.uint8)
    return np.asarray(grid([[white]], [caption]))[:, :, 0] < 128


def gb2312():
    pairs = (bytes((row, cell)) for row in range(0xA1, 0xF8) for cell in range(0xA1, 0xFF))
    return {character for pair in pairs for character in pair.decode("gb2312", "ignore")}


def test_the_font_has_gb_2312_and_europe(monkeypatch):
    """The box of a character that no font has is seen, and no letter looks like it."""
    monkeypatch.setattr(image_module, "_system_font", lambda block, size: font(size))
    letters = {chr(c) for c in (*range(0x21, 0x7F), *range(0xA1, 0x180), *range(0x400, 0x460))} - {"\xad"}
    letters |= set("άέήίόύώΑΩαωΐЄІЇҐёẞạảấệđơư“”‘’—…€™№·×÷°")
    assert len(gb2312()) == 7445
    box = bytes(font(15).getmask("\U0010fffe"))
    assert any(box)
    assert [c for c in sorted(gb2312() | letters) if bytes(font(15).getmask(c)) == box] == []
    armour, missing = dark("黑色铠甲"), dark("黑色\U0010fffe甲")
    assert (armour != missing).any()
    assert all(cell[:, 4 + 15 * i : 19 + 15 * i].any() for i in range(4) for cell in (armour, missing))


@pytest.fixture
def fontconfig(tmp_path, monkeypatch):
    """Makes a shell script the program fc-match."""

    def forget():
        image_module._system_font.cache_clear()
        image_module._font_of.cache_clear()

    def install(script):
        (tmp_path / "fc-match").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "fc-match").chmod(0o755)

    forget()
    monkeypatch.setenv("PATH", str(tmp_path))
    yield install
    forget()


def test_other_scripts_come_from_the_system(tmp_path, fontconfig):
    """DejaVu Sans, which matplotlib brings, has Arabic and Hebrew and no Thai."""
    matplotlib = pytest.importorskip("matplotlib")
    dejavu = pathlib.Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    fontconfig(f"echo $3 >> {tmp_path}/asked; printf '{dejavu}\\n0'")
    names = lambda text: [(piece, face.getname()[0]) for piece, face in split_by_font(text, 15)]
    own = font(15).getname()[0]
    assert names("熊 دب بني, é") == [("熊 ", own), ("دب بني", "DejaVu Sans"), (", é", own)]
    assert names("ภาษา 😀") == [("ภาษา ", own), ("😀", "DejaVu Sans")]
    assert (tmp_path / "asked").read_text().splitlines() == [
        ":charset=600-67f",
        ":charset=e00-e7f",
        ":charset=1f600-1f67f",
    ]
    assert text_width("دب بني", 15) == split_by_font("دب بني", 15)[0][1].getlength("دب بني")


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "",
        "printf '/nowhere.ttf\\n0'",
        "printf '/etc/passwd\\n0'",
        "printf '/etc/passwd\\nx'",
        "printf '\\377\\n0'",
    ],
)
def test_a_fontconfig_that_fails_leaves_boxes(fontconfig, script):
    if script:
        fontconfig(script)  # else there is no such program
    assert split_by_font("ภาษา", 15) == [("ภาษา", font(15))]


STRANGE = [
    "e\u0301 q\u0307\u0323",
    "z" + "".join(map(chr, range(0x300, 0x340))),
    "\u0301 starts with a mark",
    "\x1b[2J\x00\x07",
    "\u202eright\u2066 to left",
    "lone \ud800 \udfff",
    "\u200d\u200b\ufeff",
    "👨\u200d👩\u200d👧 ❤\ufe0f 🇨🇳",
    "हिन्दी भालू",
    "한국어 𠀀𠮷 㐀",
    "\ue000\U0010ffff",
    "a\nb\r\nc\u2028d",
    "",
    " ",
    "\u3000",
]


@pytest.mark.parametrize("caption", STRANGE, ids=ascii)
def test_strange_captions_keep_to_their_place(caption):
    """A caption is drawn between the images, whatever its marks, and never over them."""
    black = np.zeros((128, 128, 3), np.uint8)
    sheet = np.asarray(grid([[black], [black]], ["", caption]))
    assert not sheet[24:152, 4:132].any()
    assert not sheet[-8 - 128 : -8, 4:132].any()


def test_the_sheet_shows_what_was_written(model, tmp_path):
    written = draw(model, [BEAR, "two\nlines"], tmp_path)
    sheet = write_grid(model, written, tmp_path, SamplingOptions(n=2), 32)
    assert json.loads(read_info(sheet)["prompt"]) == [BEAR, "two\nlines"]
    assert Image.open(sheet).width == 2 * (32 + 4) + 4
    assert write_grid(model, written, tmp_path, SamplingOptions(n=2), 32) == sheet
    assert write_grid(model, written, tmp_path, SamplingOptions(n=2), 64).name == "grid-2.png"


def test_an_animation_goes_there_and_back(model, tmp_path):
    options = SamplingOptions(n=2)
    written = list(write_animations(model, BEAR, CAR, tmp_path, options, 5))
    with Image.open(written[1].path) as image:
        assert (image.format, image.n_frames, image.size) == ("WEBP", 8, (256, 256))
    assert read_info(written[1].path)["to"] == CAR
    assert [w.new for w in write_animations(model, BEAR, CAR, tmp_path, options, 5)] == [False, False]


def test_unwritable_out(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        draw(model, [BEAR], tmp_path / "file" / "x")


class Fake:
    """Draws grey images without a network."""

    digest, config = "0" * 16, tiny(data__size=8)

    def stream(self, prompts, n, *_):
        yield np.full((len(prompts) * n, 8, 8, 3), 128, np.uint8)


TEXT = st.text(max_size=60) | st.text(
    st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Mn", "So"]), max_size=20
)


@pytest.mark.slow
@settings(max_examples=1000, derandomize=True, database=None, deadline=None)
@given(st.lists(TEXT.filter(str.strip), min_size=1, max_size=3), st.sampled_from(["png", "webp"]))
@example(
    [
        "CON",
        "a/b",
        ".",
        "..",
        "~",
        "\0",
        "a\0b",
        "\ud800",
        "x" * 5000,
        "مرحبا بالعالم",
        "👨‍👩‍👧‍👦",
        "-rf *",
        "%s%n",
        "c:\\d",
    ],
    "png",
)
def test_any_prompt_becomes_a_file_in_the_folder_and_is_known_again(tmp_path_factory, prompts, form):
    out = tmp_path_factory.mktemp("out")
    options = SamplingOptions(n=1, format=form)
    written = list(write_images(Fake(), prompts, out / "in", options))
    assert {w.path.parent for w in written} == {out / "in"}
    assert sorted(out.iterdir()) == [out / "in"]
    assert {w.path for w in written} == set((out / "in").iterdir())
    assert len({w.path for w in written}) == len({w.prompt for w in written})
    again = list(write_images(Fake(), prompts, out / "in", options))
    assert [(w.path, w.new) for w in again] == [(w.path, False) for w in written]
    write_grid(Fake(), written, out / "in", options, 16)


@settings(max_examples=300, derandomize=True, database=None, deadline=None)
@given(st.text())
def test_names_are_short_and_plain(prompt):
    name = slug(prompt.encode("utf-8", "replace").decode())
    assert name == pathlib.PurePath(name).name
    assert 0 < len(name.encode()) <= 87  # an animation has two, in at most 255
    assert not name.startswith((".", "-"))


def test_a_damaged_picture_is_no_picture(model, tmp_path):
    path = draw(model, [BEAR], tmp_path)[0].path
    path.write_bytes(path.read_bytes()[:-40])
    assert draw(model, [BEAR], tmp_path)[0].path != path
    assert read_info(tmp_path / "absent.png") == {}
    assert dataclasses.asdict(SamplingOptions())["n"] == 4
