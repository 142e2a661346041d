"""Bad input is one line on stderr and exit code 2; --help teaches. In this process, as the scripts call it."""

import importlib.util
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import pytest
import tyro
from conftest import ROOT

from dallegan.commands import sample, train
from dallegan.io.cli import parse, run
from dallegan.io.files import check_writable, write_atomic


def call(script, args, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "argv", [f"{script.__name__.split('.')[-1]}.py", *map(str, args)])
    try:
        code = run(script.main)
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quickstar"], "did you mean quickstart?"),
        (["../etc"], "no preset '../etc'"),
        (["--batch", "6"], "--batch 6: does not divide evenly"),
        (["--data.size", "40"], "--data.size 40: must be 16"),
        (["--data.source", "folder:/absent"], "no folder /absent"),
        (["--data.source", "folder:{empty}"], "no captioned images in"),
        (["--data.source", "cifar"], "choose storybook, emoji, folder:PATH"),
    ],
)
def test_train_refuses(args, message, empty, tmp_path, monkeypatch, capsys):
    args = [a.format(empty=empty) for a in args]
    monkeypatch.setattr(train, "join", lambda parallel: None)  # it has to come before JAX is used, which other tests have done
    code, _, error = call(train, [*args, *(["--workdir", tmp_path / "run"] if args[0].startswith("-") else [])], monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no prompt"),
        ([""], "a prompt is empty"),
        (["\u200b"], "a prompt is empty"),
        (["-"], "no prompts on stdin"),
        (["a cat", "--n", "0"], "--n 0: must be at least 1"),
        (["a cat", "--model", "/absent"], "/absent is not a model: no such directory"),
        (["a cat", "--model", "{empty}"], "is not a model: no config.json"),
        (["a cat", "--model", "a cat" * 60], "is not a model: File name too long"),
        (["a cat", "--model", "storybook-32@best"], "leave @best out"),
        (["--file", "/absent"], "cannot read /absent: No such file"),
        (["--interpolate", "a", "b", "c"], "--interpolate: takes one caption or two, not 3"),
        (["--interpolate", "a", "b", "--frames", "1"], "--frames 1: must be at least 2"),
        (["a cat", "--truncation", "nan"], "the truncation a finite number"),
    ],
)
def test_sample_refuses(args, message, empty, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", None)  # as a shell closes it
    code, _, error = call(sample, [a.format(empty=empty) for a in args], monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_stdin_gives_prompts_a_line_each(tmp_path, monkeypatch, capsys):
    give = lambda text: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    give(b" \n\n")
    assert call(sample, ["-", "--out", tmp_path], monkeypatch, capsys) == (2, "", "error: no prompts on stdin: write one a line\n")
    give("a cat\n\n一只狗\n".encode() + b"\xff\n")
    code, out, _ = call(sample, ["-", "--n", 1, "--json", "--out", tmp_path], monkeypatch, capsys)
    assert (code, [json.loads(line)["prompt"] for line in out.splitlines()]) == (0, ["a cat", "一只狗", "\ufffd"])


def test_a_pipe_gives_prompts_once(tmp_path, monkeypatch, capsys):
    """As of `--file <(head prompts.txt)`, or /dev/stdin."""
    for text, expected in ((b"a cat\na dog\n", ["a cat", "a dog"]), (b"\n", None)):
        reader, writer = os.pipe()
        os.write(writer, text)
        os.close(writer)
        code, out, error = call(sample, ["--file", f"/dev/fd/{reader}", "--n", 1, "--json", "--out", tmp_path], monkeypatch, capsys)
        os.close(reader)
        if expected:
            assert (code, [json.loads(line)["prompt"] for line in out.splitlines()]) == (0, expected)
        else:
            assert (code, error) == (2, f"error: no prompts in /dev/fd/{reader}: write one a line\n")


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        (train, ["--no-such-flag", "1"], "Unrecognized options: --no-such-flag"),
        (sample, ["--no-such-flag", "1"], "Unrecognized options: --no-such-flag"),
        (train, ["--model.widht", "128"], "did you mean --model.width INT?"),
        (train, ["--steps", "abc"], "--steps: invalid literal for int() with base 10: 'abc' (all flags: train.py quickstart --help)"),
        (train, ["--loss.adversarial", "wgan"], "invalid choice 'wgan' for argument '--loss.adversarial'"),
        (train, ["--optim.lr", "1"], "--optim.lr"),
        (sample, ["a cat", "--n", "many"], "Error parsing --n: invalid literal"),
    ],
)
def test_bad_flags(script, args, message, monkeypatch, capsys):
    code, _, error = call(script, args, monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_bad_flags_at_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(tyro._fmtlib, "_FORCE_ANSI", True)
    code, _, error = call(train, ["--model.widht", "128"], monkeypatch, capsys)
    assert (code, "\x1b" in error, "did you mean --model.width INT?" in error) == (2, False, True)


def test_help_teaches(monkeypatch, capsys):
    code, out, _ = call(train, ["--help"], monkeypatch, capsys)
    assert code == 0
    for word in ("storybook64", "--data.source", "--workdir", "--loss.gamma", "runs/quickstart"):
        assert word in out
    code, out, _ = call(sample, ["--help"], monkeypatch, capsys)
    assert code == 0
    for word in ("PROMPT", "--model", "--seed", "--truncation"):
        assert word in out


def test_what_the_system_denies_is_one_line(capsys):
    def refused():
        raise PermissionError(13, "Permission denied", "/denied/x.png")

    def away():
        raise OSError(116, "Stale file handle")

    def crowded():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nof many")

    def broken():
        raise RuntimeError("INTERNAL: a defect")

    assert run(refused) == run(crowded) == 2
    assert run(away) == 1  # the launcher may start it again
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "error: /denied/x.png: Permission denied"
    assert second.startswith("error: out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes). Training needs less with")
    assert third == "error: the system says: Stale file handle"
    with pytest.raises(RuntimeError):
        run(broken)


def test_a_reader_that_is_gone_is_no_error():
    script = "import sys; from dallegan.io.cli import run; sys.exit(run(lambda: print('lines for nobody')))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run([sys.executable, "-c", script], stdout=writes, stderr=subprocess.PIPE, env=env, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")
    shell = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, script]
    closed = subprocess.run(shell, stderr=subprocess.PIPE, env=env, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_warnings_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(lambda: warnings.warn("caption cut", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: caption cut\n"


def test_a_terminal_without_chinese(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), "latin-1"))
    assert run(lambda: print("γ 一只熊")) == 0
    assert out.getvalue() == b"\\u03b3 \\u4e00\\u53ea\\u718a\n"


def test_home_is_expanded(monkeypatch):
    """Shells leave it as it is in --out=~/pictures."""
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(sample.Args, "sample.py", args=["a cat", "--out=~/pictures"]).out == pathlib.Path("/home/me/pictures")
    assert parse(sample.Args, "sample.py", args=["a cat", "--out=~nobody-at-all/x"]).out == pathlib.Path("~nobody-at-all/x")


def test_a_file_is_written_through_links_and_into_pipes(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for data in ("one", "two"):
        check_writable(tmp_path / "link")
        write_atomic(tmp_path / "link", data)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == data
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    check_writable(tmp_path / "pipe")
    write_atomic(tmp_path / "pipe", "three")
    reader.join(10)
    assert found == ["three"]
    assert (tmp_path / "pipe").is_fifo()
    assert {p.name for p in tmp_path.iterdir()} == {"link", "target", "pipe"}


@pytest.mark.parametrize("platform", ["cuda", "abacus"])
def test_a_device_that_is_not_there_is_one_line(tmp_path, platform):
    if platform == "cuda" and importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("may be there")
    command = [sys.executable, ROOT / "sample.py", "a bear", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": platform}, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}, and no such device can be used here")


def test_as_a_real_process(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "train.py", "nonsense"], capture_output=True, text=True, cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no preset 'nonsense'")
