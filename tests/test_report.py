"""A run's page is whole in one file, says what the run says, and makes no markup of what it is given."""

import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dallegan.io.cli import run
from dallegan.run import report
from dallegan.run.report import choose, write_report


class Page(HTMLParser):
    """What a page refers to, its tags in order, and its text."""

    def __init__(self, text):
        super().__init__()
        self.links, self.tags, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href") and not value.startswith("#")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "<b>mine"
    (made / "samples").mkdir(parents=True)
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(made / "samples" / f"{1000 * i:08d}.png")
    (made / "samples" / "00000000.png").write_bytes(b"damaged")
    lines = [
        {"step": i, "images": 32 * i, "d_loss": 1 / i, "g_loss": None if i == 3 else 2.0, "r1": 0.1, "alignment": 0.01 * i, "images_per_second": 40.0,
         "skipped": 2, "seconds": {"step": 30.0 * i, "compile": 10.0}}
        for i in range(1, 51)
    ]  # fmt: skip
    (made / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"half')
    (made / "config.json").write_text(json.dumps({"steps": 50, "data": {"source": "<script>alert(1)</script>", "size": 32}}))
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
    for said in ("50 of 50", "<script>alert(1)</script> at 32 px; 2 cores; 2026-11-25", "29,000 images", "0.500", "1,500", "99.3 %"):
        assert said in page.text, said
    assert page.tags.count("svg") == 4  # alignment, losses, penalties, speed: what this run has
    assert write_report(folder).read_text() == text


def test_chosen_evenly():
    assert choose(list(range(30)), 4) == [0, 10, 19, 29]
    assert choose([1, 2], 8) == [1, 2]
    assert choose([], 8) == []


def test_as_a_command(folder, monkeypatch, capsys):
    call = lambda *args: (monkeypatch.setattr(sys, "argv", ["report", *map(str, args)]), run(report.main), *capsys.readouterr())[1:]
    assert call(folder, "--out", folder / "new" / "page.html") == (0, f"{folder}/new/page.html\n", "")
    assert call(folder / "none") == (2, "", f"error: {folder}/none has no metrics.jsonl with a line in it: name a run directory of train.py\n")
    assert not (folder / "none").exists()
    code, _, error = call(folder, "--out", folder / "config.json" / "x.html")
    assert (code, error.count("\n")) == (2, 1)
    assert "cannot write" in error
