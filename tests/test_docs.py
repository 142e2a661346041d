"""Tests of the documentation: it builds without a warning, its links lead somewhere, and its code runs.

Python blocks run as they are, commands with a tiny model. A block that cannot run here (for example because
it needs a cluster) has a comment before it, `<!-- not run: why -->`; its shell syntax, commands and settings
are checked.
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

from dallegan.__main__ import COMMANDS
from dallegan.config import Config, check, flatten
from dallegan.io.cli import parse_config

PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "examples/*.md", "benchmarks/*.md", "dallegan/assets/*/README.md")
    for path in ROOT.glob(pattern)
)
README, CHINESE, LOG = (
    pathlib.Path("README.md"),
    pathlib.Path("README.zh-CN.md"),
    pathlib.Path("benchmarks/LOG.md"),
)
# these replace the real commands: sizes that fit a test, and nothing is installed
DALLEGAN = f"""#!/bin/bash
case "$1" in
    train) exec {sys.executable} -m dallegan "$@" {" ".join(TINY_FLAGS)} ;;
    evaluate) exec {sys.executable} -m dallegan "$@" --n 50 ;;
    demo)
        {sys.executable} -m dallegan "$@" > output & trap "kill $!" EXIT
        until grep http:// output; do kill -0 $! && sleep 0.2 || exit 1; done ;;
    *) exec {sys.executable} -m dallegan "$@" ;;
esac
"""
PYTHON = f"""#!/bin/bash
case "$*" in
    train.py*) exec {sys.executable} "$@" {" ".join(TINY_FLAGS)} ;;
    "-m dallegan "*) exec dallegan "${{@:3}}" ;;
    benchmarks/*) exec {sys.executable} "$1" --help ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
PIP = f"""#!{sys.executable}
import importlib.metadata, re, sys
known = set(importlib.metadata.metadata("dallegan").get_all("Provides-Extra"))
lists = [names for word in sys.argv[1:] for names in re.findall(r"\\[(.*)\\]", word)]
extras = [name for names in lists for name in names.split(",")]
sys.exit(f"no extra {{set(extras) - known}}" if set(extras) - known else 0)
"""
TRAIN = re.compile(
    r"(?:python train\.py|dallegan train) ([^'&|\n\\]*)"
)  # to the end of a line or of a quotation
COMMAND = re.compile(r"^(?:python -m )?dallegan (\w+)", re.MULTILINE)


def tokens(page):
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def blocks(page):
    """(language, text, reason why it is not run) of each block of code, in order."""
    found, why = [], ""
    for token in tokens(page):
        if token.type == "html_block":
            comment = re.fullmatch(r"<!-- not run: (.+) -->", token.content.strip())
            why = comment[1] if comment else ""
        elif token.type == "fence":
            found.append((token.info.strip(), token.content, why))
            why = ""
        elif token.type in ("paragraph_open", "heading_open"):
            why = ""
    return found


def headings(page):
    parsed = tokens(page)
    return [
        (token.tag, parsed[i + 1].content) for i, token in enumerate(parsed) if token.type == "heading_open"
    ]


def anchors(page):
    """The anchors of a page's headings, or of the included file if the page only includes one."""
    included = re.fullmatch(r"```\{include\} (\S+)\n```\n", (ROOT / page).read_text())
    return {slugify(text) for _, text in headings((page.parent / included[1]) if included else page)}


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
            assert set(COMMAND.findall(text)) <= set(COMMANDS)
        else:
            assert language in ("python", "text") or language.startswith("{"), language
        if why:
            for arguments in TRAIN.findall(text):
                check(parse_config(shlex.split(arguments)))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_in_the_text_are_settings(page):
    known = {name.replace("_", "-"): value for name, value in flatten(Config()).items() if "." in name}
    if page == LOG or page.name == "CHANGELOG.md":  # they also name settings that are gone
        return
    inline = (
        child for token in tokens(page) for child in token.children or () if child.type == "code_inline"
    )
    for code in (child.content for child in inline):
        for name in re.findall(r"--([a-z]+\.[a-z0-9-]+)", code):
            switched = name.replace(".no-", ".")
            assert name in known or isinstance(known.get(switched), bool), f"{page}: {code}"
        if re.fullmatch(r"(--[a-z]+\.[a-z0-9-]+( [a-z0-9.]+)*) ?", code) and " " in code:
            parse_config(["quickstart", *code.split()])


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with what the pages speak of, and an environment to run commands in."""
    folder = tmp_path_factory.mktemp("docs")
    commands = folder / "bin"
    commands.mkdir()
    scripts = {"python": PYTHON, "dallegan": DALLEGAN, "pip": PIP}
    # these are the suite itself, or CI runs them
    scripts |= dict.fromkeys(
        ("pytest", "ruff", "pyright", "lint-imports", "sphinx-build", "pre-commit"), "#!/bin/sh\n"
    )
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    rng = np.random.default_rng(0)
    images = folder / "my_pictures"
    images.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(images / f"{i}.png")
        (images / f"{i}.txt").write_text(f"picture number {i}\n第{i}张图\n")
    (folder / "shards").mkdir()
    for i in range(100):
        with tarfile.open(folder / "shards" / f"{i:05}.tar", "w") as tar:
            for kind in ("png", "txt"):
                tar.add(images / f"{i % 12}.{kind}", f"{i:09}.{kind}")
    (folder / "prompts.txt").write_text("a red car\n一只棕色的大熊站在雪地里\n")
    with serve() as hub:
        yield (
            folder,
            os.environ
            | {"PATH": f"{commands}:{os.environ['PATH']}", "STEPS": "3", "HF_HOME": str(folder / "hf")}
            | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_XET": "1"},
        )


@pytest.fixture(scope="session")
def trained(world):
    """runs/quickstart, which most pages expect to exist."""
    folder, environment = world
    place = folder / "trained"
    enter(place, world)
    subprocess.run(["python", "train.py"], cwd=place, env=environment, check=True)
    return place / "runs" / "quickstart"


def enter(place, world):
    """Makes a folder for one page to run its commands in."""
    place.mkdir()
    for name in ("train.py", "sample.py", "examples", "benchmarks", "docs", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    for name in ("my_pictures", "shards", "prompts.txt"):
        (place / name).symlink_to(world[0] / name)


def lines(page):
    """All lines of code to run, without their comments."""
    code = [text for language, text, _ in blocks(page) if language in ("bash", "python")]
    return {line.split("  #")[0] for text in code for line in text.splitlines()}


def test_the_readmes_have_one_structure():
    assert lines(CHINESE) <= lines(README)
    assert [tag for tag, _ in headings(CHINESE)] == [tag for tag, _ in headings(README)]
    for page in (README, CHINESE):
        assert len((ROOT / page).read_text().splitlines()) <= 150


def test_the_log_is_newest_first_and_each_title_has_a_verdict():
    titles = [text for tag, text in headings(LOG) if tag == "h2"]
    form = re.compile(r"(\d{4}-\d\d-\d\d) .+ \((kept|negative|undecided|measured|fixed)\)")
    dates = [match[1] if (match := form.fullmatch(title)) else title for title in titles]
    assert all(map(form.fullmatch, titles)), [title for title in titles if not form.fullmatch(title)]
    assert dates == sorted(dates, reverse=True)
    assert len({slugify(title) for title in titles}) == len(titles)


def runs(page):
    return any(language in ("bash", "python") and not why for language, _, why in blocks(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != CHINESE and runs(page)], ids=str)
def test_the_code_runs(page, world, trained, tmp_path):
    _, environment = world
    place = tmp_path / "clone"
    enter(place, world)
    if page != README:  # which begins by training it
        (place / "runs").mkdir()
        for name in ("quickstart", "dcgan"):  # the second one is there to be compared
            (place / "runs" / name).symlink_to(trained)
    python = []  # a Python block continues the ones before, as a reader would type them
    for language, text, why in blocks(page):
        if why or language not in ("bash", "python"):
            continue
        script = f"set -euo pipefail\n{text}"
        if language == "python":
            python.append(text)
            script = f"{sys.executable} - <<'END'\n{''.join(python)}\nEND"
        done = subprocess.run(
            ["bash", "-c", script], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{page}:\n{text}\n{done.stdout}\n{done.stderr[-3000:]}"


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path):
    build = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        ROOT / "docs",
        tmp_path,
    ]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "api.html").read_text()
    for name in ("dallegan.load", "Gan.discriminate", "kernel_distance", "weight of R1 and R2"):
        assert name in page, name


def test_extras_are_those_that_the_pages_name():
    named = re.compile(r"(?:dallegan|\.)\[([\w,]+)\]")
    extras = {
        name
        for page in PAGES
        for names in named.findall((ROOT / page).read_text())
        for name in names.split(",")
    }
    assert extras <= set(importlib.metadata.metadata("dallegan").get_all("Provides-Extra"))
