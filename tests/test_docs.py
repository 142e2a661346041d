"""The documentation builds without a warning, its links lead somewhere, and its code runs: Python as it is, commands with a tiny model.

A block that cannot run here (it needs a cluster) has a comment before it, `<!-- not run: why -->`; its shell syntax and its settings are checked.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile
import urllib.parse

import numpy as np
import pytest
import yaml
from conftest import ROOT, TINY_FLAGS
from hub_server import serve
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors.index import slugify
from PIL import Image

from dallegan.config import Config, check, flatten
from dallegan.io.cli import parse_config

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "benchmarks/*.md", "dallegan/assets/*/README.md")
    for path in ROOT.glob(pattern)
)
CHINESE = pathlib.Path("README.zh-CN.md")
# what stands in front of the real commands: sizes that fit a test, and nothing is installed
PYTHON = f"""#!/bin/bash
case "$*" in
    train.py*) exec {sys.executable} "$@" {" ".join(TINY_FLAGS)} ;;
    *--plot*) exec {sys.executable} "$@" ;;
    "-m dallegan.evaluate"*) exec {sys.executable} "$@" --n 50 ;;
    "-m dallegan.demo"*)
        {sys.executable} "$@" > said & trap "kill $!" EXIT
        until grep http:// said; do kill -0 $! && sleep 0.2 || exit 1; done ;;
    benchmarks/*) exec {sys.executable} "$1" --help ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
PIP = f"""#!{sys.executable}
import importlib.metadata, re, sys
known = set(importlib.metadata.metadata("dallegan").get_all("Provides-Extra"))
asked = [name for word in sys.argv[1:] for names in re.findall(r"\\[(.*)\\]", word) for name in names.split(",")]
sys.exit(f"no extra {{set(asked) - known}}" if set(asked) - known else 0)
"""


def tokens(page):
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def blocks(page):
    """(language, text, why it is not run) of each block of code, in order."""
    found, why = [], ""
    for token in tokens(page):
        if token.type == "html_block":
            said = re.fullmatch(r"<!-- not run: (.+) -->", token.content.strip())
            why = said[1] if said else ""
        elif token.type == "fence":
            found.append((token.info.strip(), token.content, why))
            why = ""
        elif token.type in ("paragraph_open", "heading_open"):
            why = ""
    return found


def anchors(page):
    """Those of a page's headings; of an included file where a page is one line that includes it."""
    included = re.fullmatch(r"```\{include\} (\S+)\n```\n", (ROOT / page).read_text())
    parsed = tokens((page.parent / included[1]) if included else page)
    return {slugify(parsed[i + 1].content) for i, token in enumerate(parsed) if token.type == "heading_open"}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for inline in (child for token in tokens(page) for child in token.children or ()):
        link = inline.attrGet("href") or inline.attrGet("src")
        if not link or link.startswith(("https://", "http://127.0.0.1")):
            continue
        path, _, anchor = urllib.parse.unquote(link).partition("#")
        target = ROOT / page.parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        assert ROOT in target.resolve().parents
        assert not anchor or anchor in anchors(target.resolve().relative_to(ROOT)), f"{page}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_are_well_formed(page):
    for language, text, why in blocks(page):
        if language == "json":
            for line in text.splitlines():
                assert json.loads(line)
        elif language == "yaml":
            assert yaml.safe_load(text)
        elif language == "bash":
            subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        else:
            assert language in ("python", "text") or language.startswith("{"), language
        if why:  # the commands in it, to the end of a line or of a quotation
            for command in re.findall(r"python train\.py ([^'&|\n\\]*)", text):
                check(parse_config(shlex.split(command)))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_in_the_text_are_settings(page):
    known = {name.replace("_", "-"): value for name, value in flatten(Config()).items() if "." in name}
    for code in (child.content for token in tokens(page) for child in token.children or () if child.type == "code_inline"):
        for name in re.findall(r"--([a-z]+\.[a-z0-9-]+)", code):
            switched = name.replace(".no-", ".")
            assert name in known or isinstance(known.get(switched), bool), f"{page}: {code}"
        if re.fullmatch(r"(--[a-z]+\.[a-z0-9-]+( [a-z0-9.]+)*) ?", code) and " " in code:
            parse_config(["quickstart", *code.split()])


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A clone's folder with what the pages speak of, and an environment to run commands in."""
    folder = tmp_path_factory.mktemp("docs")
    commands = folder / "bin"
    commands.mkdir()
    done = "#!/bin/sh\nexit 0\n"  # what the suite is, or what CI runs itself
    for name, text in {"python": PYTHON, "pip": PIP, "pytest": done, "ruff": done, "pyright": done, "sphinx-build": done}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    rng = np.random.default_rng(0)
    pictures = folder / "my_pictures"
    pictures.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"picture number {i}\n第{i}张图\n")
    (folder / "shards").mkdir()
    for i in range(100):
        with tarfile.open(folder / "shards" / f"{i:05}.tar", "w") as tar:
            for kind in ("png", "txt"):
                tar.add(pictures / f"{i % 12}.{kind}", f"{i:09}.{kind}")
    (folder / "prompts.txt").write_text("a red car\n一只棕色的大熊站在雪地里\n")
    with serve() as hub:
        yield folder, os.environ | {
            "PATH": f"{commands}:{os.environ['PATH']}", "STEPS": "3", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder / "hf"),
        }  # fmt: skip


@pytest.fixture(scope="session")
def trained(world):
    """runs/quickstart, which most pages take for granted."""
    folder, environment = world
    place = folder / "trained"
    enter(place, world)
    subprocess.run(["python", "train.py"], cwd=place, env=environment, check=True)
    return place / "runs" / "quickstart"


def enter(place, world):
    """Makes a folder of a page's own."""
    place.mkdir()
    for name in ("train.py", "sample.py", "examples", "benchmarks", "docs", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    for name in ("my_pictures", "shards", "prompts.txt"):
        (place / name).symlink_to(world[0] / name)


def lines(page):
    """All lines of code to run, without their comments."""
    return {line.split("  #")[0] for language, text, _ in blocks(page) if language in ("bash", "python") for line in text.splitlines()}


def test_the_chinese_readme_says_nothing_else():
    assert lines(CHINESE) <= lines(pathlib.Path("README.md"))


RUNNABLE = [page for page in PAGES if page != CHINESE and any(language in ("bash", "python") and not why for language, _, why in blocks(page))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=str)
def test_the_code_runs(page, world, trained, tmp_path):
    _, environment = world
    place = tmp_path / "clone"
    enter(place, world)
    if page.name != "README.md":  # which begins with training it
        (place / "runs").mkdir()
        (place / "runs" / "quickstart").symlink_to(trained)
    kept = []  # Python blocks go on from one another, as a reader would type them
    for language, text, why in blocks(page):
        if why or language not in ("bash", "python"):
            continue
        script = f"set -euo pipefail\n{text}"
        if language == "python":
            kept.append(text)
            script = f"{sys.executable} - <<'END'\n{''.join(kept)}\nEND"
        done = subprocess.run(["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{page}:\n{text}\n{done.stdout}\n{done.stderr[-3000:]}"


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    for name in ("dallegan.load", "Gan.discriminate", "kernel_distance", "weight of R1 and R2"):
        assert name in page, name


def test_extras_are_those_that_the_pages_name():
    named = {name for page in PAGES for names in re.findall(r"(?:dallegan|\.)\[([\w,]+)\]", (ROOT / page).read_text()) for name in names.split(",")}
    assert named <= set(importlib.metadata.metadata("dallegan").get_all("Provides-Extra"))
