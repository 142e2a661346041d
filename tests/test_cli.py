"""Bad input is a clear message on stderr and exit code 2; --help teaches. All in this process."""

import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from conftest import ROOT, TINY_FLAGS

from dallegan import __main__, __version__
from dallegan.commands import sample, train
from dallegan.data.captions import NAME_IT
from dallegan.errors import UserError
from dallegan.io.cli import Forgiving, parse, parse_config, run
from dallegan.io.files import check_writable, write_atomic


@pytest.fixture
def dallegan(monkeypatch, capsys):
    """Runs a command line: (exit code, stdout, stderr)."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(
        train, "join", lambda parallel: None
    )  # must come before JAX is used, which other tests did

    def call(*args):
        return __main__.main([str(arg) for arg in args]), *capsys.readouterr()

    return call


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quickstar"], "no preset 'quickstar'; did you mean quickstart? Presets: "),
        (["../etc"], "no preset '../etc'. Presets: "),
        (["--steps", "5", "quickstart"], "'quickstart' is not a flag; name one preset, before all flags"),
        (["quickstart", "storybook32"], "'storybook32' is not a flag; name one preset, before all flags"),
        (["--loss.gamma", "1", "0.1", "7"], "'7' is not a flag"),
        (["--batch", "6"], "--batch 6: does not split evenly"),
        (["--data.size", "40"], "--data.size 40: must be 16"),
        (["--data.source", "folder:/absent"], "no folder /absent"),
        (["--data.source", "folder:{empty}"], "no captioned images in"),
        (["--data.source", "cifar"], "choose storybook, emoji, folder:PATH"),
        (["--batch", "1"], "--batch 1: does not split evenly over 1 device, --parallel.accumulate, --loss.p"),
        (["--batch", "1"], "; take 8 or --loss.penalty-share 1"),
        (["--data", "folder:x"], "no flag --data; did you mean --data.source?"),
        (["--model", "x/model.safetensors"], "no flag --model; did you mean --init-from?"),
        (["--lr", "1e-3"], "no flag --lr; did you mean --optim.lr?"),
        (["--batch_size=3"], "no flag --batch_size; did you mean --batch?"),
        (["--width", "64"], "no flag --width; did you mean --text.width or --model.width?"),
        (["--stepz", "5"], "no flag --stepz; did you mean --steps?"),
        (["--steps", "1e5"], "'1e5', which must be a whole number in digits"),
        (["--batch", "32.0"], "'32.0', which must be a whole number in digits"),
        (["--optim.lr", "1e-3"], "Missing value for argument '--optim.lr'. Expected 2 values"),
        (
            ["--model.attention", "8", "storybook32"],
            "(a preset stands before all flags: dallegan train story",
        ),
        (["--\x1b[2J", "x"], "no flag --\\x1b[2J. dallegan train --help"),
        (["--x" + "9" * 9999, "x"], "9 ... 9"),
    ],
)
def test_train_refuses(args, message, empty, tmp_path, dallegan):
    args = [a.format(empty=empty) for a in args]
    code, _, error = dallegan(
        "train", *args, *(["--workdir", tmp_path / "run"] if args[0].startswith("-") else [])
    )
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
def test_sample_refuses(args, message, empty, monkeypatch, dallegan):
    monkeypatch.setattr(sys, "stdin", None)  # as a shell closes it
    code, _, error = dallegan("sample", *[a.format(empty=empty) for a in args])
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_stdin_gives_prompts_a_line_each(tmp_path, monkeypatch, dallegan):
    give = lambda text: monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text)))
    )
    give(b" \n\n")
    assert dallegan("sample", "-", "--out", tmp_path) == (
        2,
        "",
        "error: no prompts on stdin: write one a line\n",
    )
    give("a cat\n\n一只狗\n".encode() + b"\xff\n")
    assert dallegan("sample", "-", "--out", tmp_path)[::2] == (
        2,
        f"error: stdin, line 4: not in UTF-8, or with U+FFFD: {NAME_IT}\n",
    )
    give("a cat\n\n一只狗\n".encode())
    code, out, _ = dallegan("sample", "-", "--n", 1, "--json", "--out", tmp_path)
    assert (code, [json.loads(line)["prompt"] for line in out.splitlines()]) == (0, ["a cat", "一只狗"])


def test_a_pipe_gives_prompts_once(tmp_path, dallegan):
    """As of `--file <(head prompts.txt)`, or /dev/stdin."""
    for text, expected in ((b"a cat\na dog\n", ["a cat", "a dog"]), (b"\n", None)):
        reader, writer = os.pipe()
        os.write(writer, text)
        os.close(writer)
        code, out, error = dallegan(
            "sample", "--file", f"/dev/fd/{reader}", "--n", 1, "--json", "--out", tmp_path
        )
        os.close(reader)
        if expected:
            assert (code, [json.loads(line)["prompt"] for line in out.splitlines()]) == (0, expected)
        else:
            assert (code, error) == (2, f"error: no prompts in /dev/fd/{reader}: write one a line\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--no-such-flag", "1"], "error: no flag --no-such-flag. dallegan train --help"),
        (
            ["sample", "--no-such-flag", "1"],
            "Unrecognized options: --no-such-flag, 1. dallegan sample --help",
        ),
        (["sample", "--modle", "x"], "Unrecognized options: --modle, x; did you mean --model?"),
        (["train", "--model.widht", "128"], "did you mean --model.width"),
        (["train", "--steps", "abc"], "Error parsing --steps: invalid literal for int() with base 10: 'abc'"),
        (["train", "--steps", "abc"], ". dallegan train quickstart --help lists all flags"),
        (["train", "--loss.adversarial", "wgan"], "invalid choice 'wgan' for argument '--loss.adversarial'"),
        (["train", "--optim.lr", "1"], "Missing value for argument '--optim.lr'"),
        (["sample", "a cat", "--n", "many"], "Error parsing --n: invalid literal"),
    ],
)
def test_bad_flags(args, message, dallegan):
    code, out, error = dallegan(*args)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert message in error


HOSTILE = "\x1b[2J\x9b2J\r\n\u202e\udcff"


@pytest.mark.parametrize(
    "args",
    [
        ["sample", HOSTILE, "--sede", "1"],
        ["sample", f"--sede{HOSTILE}"],
        ["sample", "a cat", "--n", HOSTILE],
        ["sample", "a cat", "--format", HOSTILE],
        ["train", f"--data.{HOSTILE}", "1"],
        ["train", "quickstart", f"--data.source{HOSTILE}=x"],
        ["train", "--steps", HOSTILE],
        ["evaluate", "--features", HOSTILE],
        ["hub", HOSTILE],
        ["prepare", HOSTILE],
        ["export", HOSTILE],
        ["report", f"--{HOSTILE}"],
        ["demo", "--port", HOSTILE],
    ],
    ids=lambda args: args[0],
)
def test_bad_flags_are_quoted_without_what_acts_on_a_terminal(args, dallegan):
    code, out, err = dallegan(*args)
    assert (code, out) == (2, "")
    assert not any(character in err for character in "\x1b\x9b\r\u202e\udcff")
    assert err.strip()


def test_a_prompt_keeps_its_control_characters(tmp_path, dallegan):
    """Only messages are changed, and paths are printed escaped."""
    out = tmp_path / "\x1b]0;title\x07\x9b"
    code, printed, _ = dallegan("sample", "two\nlines", "--n", 1, "--out", out)
    assert code == 0
    assert printed.isascii()
    assert printed.count("\n") == 2
    assert "\x1b" not in printed
    assert len(list(out.iterdir())) == 2
    code, printed, _ = dallegan("sample", "two\nlines", "--n", 1, "--out", out, "--json")
    assert json.loads(printed)["path"].startswith(str(out))
    assert json.loads(printed)["prompt"] == "two\nlines"
    assert "\x9b" not in printed


def test_help_teaches(dallegan):
    code, out, _ = dallegan("train", "--help")
    assert code == 0
    for word in ("storybook64", "--data.source", "--workdir", "--loss.gamma", "runs/quickstart", "--debug"):
        assert word in out
    assert len(set(re.findall(r"--[a-z][\w.-]+", out)) - {"--debug"}) <= 62 + 3  # three have a --no- form
    assert "(default: runs/dcgan-debug)" in dallegan("train", "dcgan", "--debug", "--help")[1]
    code, out, _ = dallegan("sample", "--help")
    assert code == 0
    for word in ("PROMPT", "--model", "--seed", "--truncation"):
        assert word in out


def test_each_setting_has_a_help_text_of_its_own(dallegan):
    out = dallegan("train", "--help")[1]
    text = " ".join(re.sub("[╭─╮│╰╯]", " ", out).split())
    helps = re.findall(r"--[a-z_.-]+ (?:[A-Z]+|\{[^}]*\}|\[[^(]*\]\])(?: [A-Z]+)? (.*?) \(default:", text)
    assert len(helps) > 50
    assert len(set(helps)) == len(helps)


def test_commands(dallegan):
    assert dallegan("--version") == (0, f"{__version__}\n", "")
    for args in ([], ["--help"], ["-h"]):
        code, out, error = dallegan(*args)
        assert (code, error) == (0, "")
        for command in __main__.COMMANDS:
            assert f"  {command} " in out
    code, out, error = dallegan("trian")
    assert (code, out) == (2, "")
    assert error.startswith("error: no command 'trian'; did you mean train? Commands: train, sample, ")


def test_words_that_only_look_like_presets():
    """A flag's value may be a preset's name."""
    config = parse_config(["--workdir", "quickstart", "--init-from", "dcgan"])
    assert (config.workdir, config.init_from) == ("quickstart", "dcgan")


def test_what_the_system_denies_is_one_line(capsys):
    def refused():
        raise PermissionError(13, "Permission denied", "/denied/x.png")

    def stale():
        raise OSError(116, "Stale file handle")

    def too_large():
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nof many")

    def defect():
        raise RuntimeError("INTERNAL: a defect")

    assert run(refused) == run(too_large) == 2
    assert run(stale) == 1  # the launcher may start it again
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == "error: /denied/x.png: Permission denied"
    reason = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"
    assert second.startswith(f"error: out of memory ({reason}). Training needs less with")
    assert third == "error: the system says: Stale file handle"
    with pytest.raises(RuntimeError):
        run(defect)


def test_a_reader_that_is_gone_is_no_error():
    script = "import sys; from dallegan.io.cli import run; sys.exit(run(lambda: print('lines for nobody')))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=writes, stderr=subprocess.PIPE, env=env, check=False
    )
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, b"")
    shell = ["sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, script]
    closed = subprocess.run(shell, stderr=subprocess.PIPE, env=env, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


def gone():
    reads, writes = os.pipe()
    os.close(reads)
    return os.fdopen(writes, "w", buffering=1)


def full():
    return open("/dev/full", "w", buffering=1)


@pytest.fixture(params=[gone, full, lambda: None])
def make(request):
    streams = []

    def made():
        streams.append(request.param())
        return streams[-1]

    yield made
    for stream in filter(None, streams):  # closed here: Python 3.13 warns of what it can't write at the end
        with contextlib.suppress(OSError):
            stream.close()


def test_messages_that_nobody_takes_change_nothing(monkeypatch, make):
    """The reader of stderr has gone, its disk is full, or a shell has closed it. For training, stdout too."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(sys, "stderr", make())
    done = []

    def work():
        for _ in range(1000):
            print("progress " * 100, file=sys.stderr, flush=True)
        warnings.warn("careful", stacklevel=1)
        done.append(sys.stderr.isatty())

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(work) == 0
    assert done == [False]

    def fail():
        raise UserError("bad")

    assert run(fail) == 2
    monkeypatch.setattr(sys, "stdout", make())

    def train_on():
        sys.stdout = Forgiving(sys.stdout)
        for _ in range(1000):
            print("progress " * 100, flush=True)

    assert run(train_on) == 0


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
def test_training_without_streams(tmp_path, redirection):
    command = [sys.executable, ROOT / "train.py", *TINY_FLAGS, "--log.evaluate", "0", "--workdir", "run"]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    assert subprocess.run(shell, cwd=tmp_path, env=os.environ, check=False).returncode == 0
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("program", ["-m dallegan train", "train.py", "sample.py cat"])
def test_an_interrupt_while_modules_are_imported(tmp_path, program):
    if not pathlib.Path("/proc/self/maps").exists():
        pytest.skip("cannot see what a process has loaded")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLIBC_TUNABLES": ""}  # as after the restart
    words = [str(ROOT / word) if word.endswith(".py") else word for word in program.split()]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, "env": environment}
    with subprocess.Popen([sys.executable, *words], **options) as process:
        try:
            while b"numpy" not in pathlib.Path(f"/proc/{process.pid}/maps").read_bytes():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=60) == (b"", b"interrupted\n")
        finally:
            process.kill()
    assert process.returncode == 130


def test_warnings_are_one_line(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert run(lambda: warnings.warn("caption\n\x1b]0;cut", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: caption\\n\\x1b]0;cut\n"


def test_a_terminal_without_chinese(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), "latin-1"))
    assert run(lambda: print("γ 一只熊")) == 0
    assert out.getvalue() == b"\\u03b3 \\u4e00\\u53ea\\u718a\n"


def test_home_is_expanded(monkeypatch):
    """Shells leave it as it is in --out=~/pictures."""
    monkeypatch.setenv("HOME", "/home/me")
    assert parse(sample.Args, "dallegan sample", args=["a cat", "--out=~/pictures"]).out == pathlib.Path(
        "/home/me/pictures"
    )
    for path, why in (("~nobody-at-all/x", "no such user"), ("gs://b/x", "an address")):
        with pytest.raises(UserError, match=why):
            parse(sample.Args, "dallegan sample", args=["a cat", f"--out={path}"])


@pytest.mark.parametrize(
    "command",
    [
        "sample x --out=~nobody-at-all/x",
        "sample x --model=~nobody-at-all/x",
        "export --out=~nobody-at-all/x.jax",
        "export --model=~nobody-at-all/x --out=x.jax",
        "evaluate --weights=~nobody-at-all/x",
        "evaluate --json=~nobody-at-all/x",
        "evaluate --model=~nobody-at-all@best",
        "hub download a/b --to=~nobody-at-all/x",
        "hub upload ~nobody-at-all/x a/b",
        "hub upload . a/b --card=~nobody-at-all/x",
        "report x --out=~nobody-at-all/x",
    ],
)
def test_the_home_of_nobody_is_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(command.split()) == 2
    assert re.fullmatch(r"error: .*there is no such user.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


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
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": platform}, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}, and no such device can be used here")


def test_as_a_real_process(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: no preset 'nonsense'")


@pytest.mark.slow
def test_debug_goes_through_a_whole_run(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--debug"]
    subprocess.run(command, cwd=tmp_path, env=os.environ, check=True)
    workdir = tmp_path / "runs" / "quickstart-debug"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert sum("alignment" in line for line in lines) == 2
    assert len(list((workdir / "samples").glob("*.png"))) == 2
    assert {path.name for path in (workdir / "checkpoints").iterdir()} >= {"5", "10"}
    again = subprocess.run(command, cwd=tmp_path, env=os.environ, check=True, capture_output=True, text=True)
    assert "is complete" in again.stdout
