"""The demo's page, driven in a real Chromium, and what it refuses."""

import io
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import dallegan
from dallegan.__main__ import main
from dallegan.commands import demo
from dallegan.commands.demo import Studio
from dallegan.errors import UserError
from dallegan.io.image import open_image, read_info

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FILE = (
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
    + bytes(10_000)
    + b"\r\n--x--\r\n"
)
PROMPT = "一只棕色的大熊站在雪地里"


@pytest.fixture(scope="module")
def studio(model, tmp_path_factory):
    return Studio(model, tmp_path_factory.mktemp("demo"))


def test_files_are_what_sample_draws(studio, model):
    files, sheet, took = studio.draw(f" {PROMPT}\n", n=3, seed=5, truncation=0.5, best_of=2)
    np.testing.assert_array_equal(
        [open_image(f) for f in files], model.sample(PROMPT, n=3, seed=5, truncation=0.5, best_of=2)
    )
    assert read_info(files[0])["prompt"] == PROMPT
    assert open_image(sheet).shape[1] > 3 * 128
    assert took.startswith("6 drawn in")
    picture, film = studio.blend("a red car", "a blue fish", 1 / 3)
    np.testing.assert_array_equal(picture, model.interpolate("a red car", "a blue fish", demo.FRAMES)[5])
    with Image.open(film) as image:
        assert image.n_frames == 2 * demo.FRAMES - 2


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("",), "the prompt is empty"),
        ((None,), "the prompt is empty"),
        (("a" * 301,), "the prompt has 301 characters: at most 300"),
        (("a cat", 0), "images 0: from 1 to 16"),
        (("a cat", 17), "images 17"),
        (("a cat", None), "images None"),
        (("a cat", 4, -1), "seed -1"),
        (("a cat", 4, 2**32), "seed 4294967296"),
        (("a cat", 4, 0, float("nan")), "truncation nan"),
        (("a cat", 4, 0, 1.0, 9), "best of 9"),
    ],
)
def test_limits_hold_whoever_asks(asked, message, studio):
    with pytest.raises(UserError, match=message):
        studio.draw(*asked)


def test_the_oldest_files_go(model, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "KEPT_ANSWERS", 2)
    studio = Studio(model, tmp_path)
    files = [studio.draw("a cat", 1, seed)[0][0] for seed in range(4)]
    assert [os.path.exists(f) for f in files] == [False, False, True, True]
    assert studio.draw("a cat", 1, 3)[0][0] == files[3]


def test_it_says_what_is_missing(monkeypatch, capsys):
    assert main(["demo", "--port", "0"]) == 2
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo"]) == 2
    port, extra = capsys.readouterr().err.splitlines()
    assert port == "error: --port 0: from 1 to 65535"
    assert extra == "error: the demo needs the extra `demo`: pip install 'dallegan[demo]'"


def test_importing_the_command_changes_no_environment(tmp_path):
    code = "import os; old = dict(os.environ); import dallegan.commands.demo; assert dict(os.environ) == old"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.slow
def test_nothing_passes_the_queue_by_or_fills_the_disk(address):
    for path, body in {"run/draw": b'{"data": ["a cat", 16, 0, 1, 8]}', "upload": FILE}.items():
        kind = "application/json" if path == "run/draw" else "multipart/form-data; boundary=x"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/gradio_api/{path}", body, {"Content-Type": kind})
            )
        assert 400 <= refused.value.code < 500, refused.value.code


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def address():
    port = free_port()
    command = [sys.executable, "-m", "dallegan", "demo", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert line.startswith(f"http://127.0.0.1:{port} "), server.communicate(timeout=10)
        taken = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (taken.returncode, taken.stderr.count("\n")) == (2, 1), taken.stderr
        assert "choose another --port" in taken.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_a_visitor_types_the_sentence_and_sees_a_bear(address):
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # other tests may run beside this one
    elsewhere = []
    with (
        sync_playwright() as p,
        p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 1160, "height": 790})
        page.set_default_timeout(60_000)
        page.on(
            "request",
            lambda request: (
                request.url.startswith((address, "data:", "blob:")) or elsewhere.append(request.url)
            ),
        )
        page.goto(address)
        page.locator("#prompt textarea").fill(PROMPT)
        page.locator("#prompt textarea").press("Enter")
        pictures = page.locator("#gallery img")
        expect(pictures).to_have_count(4)
        expect(page.locator("#took")).to_contain_text("4 drawn in")
        seen = [
            Image.open(io.BytesIO(urllib.request.urlopen(pictures.nth(i).get_attribute("src")).read()))
            for i in range(4)
        ]
        drawn = dallegan.load().sample(PROMPT, n=4)
        np.testing.assert_array_equal([np.asarray(x.convert("RGB")) for x in seen], drawn)
        assert seen[0].text["prompt"] == PROMPT
        page.wait_for_function(
            "w => [...document.querySelectorAll('#gallery img')]"
            ".every(x => x.complete && x.naturalWidth == w)",
            arg=drawn.shape[2],
        )
        if "SCREENSHOT" in os.environ:
            page.screenshot(path=os.environ["SCREENSHOT"])

        page.locator("#prompt textarea").fill(" ")
        page.locator("#prompt textarea").press("Enter")
        expect(page.get_by_text("the prompt is empty")).to_be_visible()

        page.get_by_role("tab", name="Between").click()
        page.locator("#position input[type=range]").focus()
        page.keyboard.press("End")
        page.locator("#to textarea").press("Enter")
        expect(page.locator("#between img")).to_be_visible()
    assert not elsewhere
