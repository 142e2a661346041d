"""A report is one whole file, shows what the runs' files say, and makes no markup of their text."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dallegan.__main__ import main
from dallegan.run import report
from dallegan.run.report import choose, write_report


class Page(HTMLParser):
    """The links of a page, its tags in order, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        links = [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.links += [link for link in links if not link.startswith("#")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "<b>mine"
    (made / "samples").mkdir(parents=True)
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(made / "samples" / f"{1000 * i:08d}.png")
    (made / "samples" / "00000000.png").write_bytes(b"damaged")
    line = {"r1": 0.1, "images_per_second": 40.0, "skipped": 2}
    lines = [
        line
        | {
            "step": i,
            "images": 32 * i,
            "d_loss": 1 / i,
            "g_loss": None if i == 3 else 2.0,
            "alignment": 0.01 * i,
        }
        | {"seconds": {"step": 30.0 * i, "compile": 10.0}}
        for i in range(1, 51)
    ]
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half')
    data = {"source": "<script>alert(1)</script>", "size": 32}
    (made / "config.json").write_text(json.dumps({"steps": 50, "data": data}))
    (made / "machine.json").write_text(json.dumps({"device": "2 cores", "date": "2026-11-25"}))
    return made


def test_everything_is_on_one_page(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text()
    page = Page(text)
    assert all(link.startswith("data:image/webp;base64,") for link in page.links)
    assert len(page.links) == report.GRIDS - 1  # one is damaged
    assert "script" not in page.tags
    assert "b" in page.tags  # of the cards
    assert "<b>mine" in page.text
    about = "<script>alert(1)</script> at 32 px; 2 cores; 2026-11-25"
    for text_shown in ("50 of 50", about, "29,000 images", "0.500", "1,500", "99.3 %"):
        assert text_shown in page.text, text_shown
    # what this run has: alignment against images and against seconds, losses, penalties, speed
    assert page.tags.count("svg") == 5
    assert page.text.count("seconds, all but compilation") == 1
    assert write_report(folder).read_text() == text


def test_several_runs_share_their_charts(tmp_path, monkeypatch):
    """Alignment of all runs is drawn against images and against seconds; every run has a row and a colour."""
    for name, values in {"a": (0.1, 0.5), "$b<i>": (0.2, 0.3)}.items():
        (tmp_path / name).mkdir()
        lines = [
            {"step": i, "images": 100 * (i + 1), "images_per_second": 50, "alignment": value}
            for i, value in enumerate(values)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "c" / "a").mkdir(parents=True)
    (tmp_path / "c" / "a" / "metrics.jsonl").write_text('{"step": 1, "images": 100, "d_loss": 2.0}\n{"half')
    monkeypatch.chdir(tmp_path)
    runs = [tmp_path / "a", tmp_path / "$b<i>"]
    path = write_report(*runs)
    assert path.resolve() == tmp_path / "report.html"
    page = Page(path.read_text())
    assert "i" not in page.tags
    assert all(text in page.text for text in ("$b<i>", "0.500", "0.300", "seconds, all but compilation"))
    assert page.tags.count("svg") == 3  # alignment against images and against seconds, speed
    assert all(
        path.read_text().count(color) >= 4 for color in report.COLORS[:2]
    )  # in the table and each chart
    page = Page(write_report(*runs, tmp_path / "c" / "a", out=tmp_path / "more.html").read_text())
    assert page.tags.count("svg") == 4  # a run without alignment adds what it has
    assert str(tmp_path / "c" / "a") in page.text  # names that are not unique become paths


def test_a_curve_has_the_points_of_its_lines():
    lines = [{"images": 10, "x": 1}, {"images": 20, "x": None}, {"images": 30, "x": 0.5}, {"x": 3}]
    assert report.points(lines, "images", "x") == [(10, 1), (30, 0.5)]
    assert report.points([{"images": 10, "x": 0}], "images", "x") == []  # a penalty that is off


def test_chosen_evenly():
    assert choose(list(range(30)), 4) == [0, 10, 19, 29]
    assert choose([1, 2], 8) == [1, 2]
    assert choose([], 8) == []


def test_as_a_command(folder, capsys, monkeypatch):
    call = lambda *args: (main(["report", *map(str, args)]), *capsys.readouterr())
    assert call(folder, "--out", folder / "new" / "page.html") == (0, f"{folder}/new/page.html\n", "")
    no_run = f"{folder}/none has no metrics.jsonl with a line in it: name a run directory of train.py"
    assert call(folder / "none") == (2, "", f"error: {no_run}\n")
    assert not (folder / "none").exists()
    code, _, error = call(folder, "--out", folder / "config.json" / "x.html")
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot write" in error
    assert call()[0] == 2
    code, out, error = call(folder, folder / "none")
    assert (code, out, error) == (2, "", f"error: {no_run}\n")
    monkeypatch.setattr(report, "NEEDED", ("no_such_package",))
    code, _, error = call(folder)
    assert (code, error) == (2, "error: a report needs the extra `eval`: pip install 'dallegan[eval]'\n")
