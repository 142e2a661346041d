"""Prepared shards hold the source's images and captions: the same bytes by whoever and after any kills."""

import contextlib
import filecmp
import io
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, tiny
from PIL import Image
from test_webdataset import image_file, sample, write_tar

from dallegan.__main__ import main
from dallegan.commands import prepare
from dallegan.data.arrayrecord import ArrayRecord
from dallegan.data.folder import Folder
from dallegan.data.pipeline import SOURCES, make_source, make_tokenizer
from dallegan.data.storybook.scenes import Storybook
from dallegan.data.webdataset import WebDataset
from dallegan.io.image import ImageError, read_image
from dallegan.tokenizer import Tokenizer

STORY = ("storybook", "--size", "16", "--limit", "400", "--shard", "20")
ONE = """
import sys
from dallegan.__main__ import main
from dallegan.commands import prepare
prepare.run_workers = lambda job, workers: (print("begun", flush=True), prepare.write_shards(job))
sys.exit(main(["prepare", *sys.argv[1:]]))
"""

# Ctrl-C comes while each worker is being started
EARLY = """
import multiprocessing.context, os, signal, sys
from dallegan.__main__ import main
process = multiprocessing.context.SpawnProcess
start = process.start
process.start = lambda self: (os.kill(os.getpid(), signal.SIGINT), start(self))
if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
"""


@pytest.fixture
def here(monkeypatch, capsys):
    """Returns a function that runs the command here: (exit code, stdout, stderr less the report)."""
    monkeypatch.setattr(prepare, "run_workers", lambda job, workers: prepare.write_shards(job))

    def call(*args):
        code, (out, error) = main(["prepare", *map(str, args)]), capsys.readouterr()
        return code, out, re.sub(r"(?m)^data: .*\n", "", error)

    return call


def same(a, b):
    names = sorted(p.name for p in a.iterdir())
    assert names == sorted(p.name for p in b.iterdir())
    assert filecmp.cmpfiles(a, b, names, shallow=False) == (names, [], [])


def command(code, out, *args):
    start = {"one": ["-c", ONE], "early": ["-c", EARLY], "real": ["-m", "dallegan", "prepare"]}[code]
    return subprocess.Popen(
        [sys.executable, *start, *STORY[:1], str(out), *STORY[1:], *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextlib.contextmanager
def unfinished(out):
    """Claims the last shard: however late a signal comes, the job is not done."""
    out.mkdir(exist_ok=True)
    with open(out / ".claims", "ab") as claims, prepare.lock_byte(claims, 19) as claimed:
        assert claimed
        yield


def until(out, shards, process):
    while process.poll() is None and len(list(out.glob("data-*"))) < shards:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


@pytest.fixture(scope="module", autouse=True)
def ctrl_c():
    """Makes Ctrl-C work, which a shell's background job and what it starts ignore."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "story"
    args = prepare.Args("storybook", str(out), 16, 400, 20)
    prepare.write_shards(prepare.start_job(args, out))
    for leftover in (".claims", ".plan.json", *(p.name for p in out.glob(".data*"))):
        (out / leftover).unlink()
    return out


def test_images_and_captions_are_those_of_the_source(undisturbed, tmp_path, here):
    made, source = ArrayRecord(str(undisturbed), 16), Storybook(16)
    assert len(made) == 400
    for i in range(0, 400, 13):
        image, captions = made.load(i)
        np.testing.assert_array_equal(image, source.example(i).image)
        assert captions == [source.example(i).caption]
    (tmp_path / "in").mkdir()
    for i in range(5):
        (tmp_path / "in" / f"{i}.png").write_bytes(image_file(i))
        (tmp_path / "in" / f"{i}.txt").write_text(f"one of {i}\n另一个 {i}\n")
    (tmp_path / "in" / "bad.png").write_bytes(b"broken")
    (tmp_path / "in" / "bad.txt").write_text("bad")
    (tmp_path / "in" / "silent.png").write_bytes(image_file(9))
    code, out, _ = here(f"folder:{tmp_path / 'in'}", tmp_path / "out", "--size", 16, "--shard", 2)
    assert (code, "5 images of 16 px in 3 shards. 2 were skipped" in out) == (0, True)
    made, source = ArrayRecord(str(tmp_path / "out"), 16), Folder(str(tmp_path / "in"), 16)
    for i in range(5):
        assert made.captions_of(i) == source.captions_of(i) == [f"one of {i}", f"另一个 {i}"]
        np.testing.assert_array_equal(made.load(i)[0], source.load(i)[0])
    with pytest.raises(ImageError) as error:
        read_image(b"broken", 16)
    reason = str(error.value)
    assert made.manifest["skipped"] == {"no caption": 1, reason: 1}
    assert (tmp_path / "out" / "skipped.log").read_text() == f"silent.png\tno caption\nbad.png\t{reason}\n"
    write_tar(
        tmp_path / "a.tar", [*sample(0), ("b.png", image_file(1)), ("b.json", b"{}"), ("c.txt", b"blind")]
    )
    # reading captions for the tokenizer skips some, and a command that joins does not: each is counted once
    for name in ("alone", "joins"):
        args = prepare.Args(f"webdataset:{tmp_path}/a.tar", str(tmp_path / name), 16)
        if name == "joins":
            prepare.start_job(args, (tmp_path / name).mkdir() or tmp_path / name)
        assert here(args.src, args.out, "--size", 16)[0] == 0
        assert (tmp_path / name / "skipped.log").read_text() == "a.tar:c\tno image\na.tar:b.png\tno caption\n"
    same(tmp_path / "alone", tmp_path / "joins")


@pytest.mark.parametrize(
    ("size", "asked", "kind"), [(64, (), "PNG"), (65, (), "JPEG"), (16, ("--format", "webp"), "WEBP")]
)
def test_formats(tmp_path, here, size, asked, kind):
    write_tar(tmp_path / "a.tar", sample(0))
    assert here(f"webdataset:{tmp_path}/a.tar", tmp_path / "out", "--size", size, *asked)[0] == 0
    image = Image.open(io.BytesIO(ArrayRecord(str(tmp_path / "out"), 16).record(0)[0]))
    assert (image.format, image.size) == (kind, (size, size))
    if kind == "JPEG":
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # no channel is at half the resolution
        wanted = WebDataset(str(tmp_path / "a.tar"), size).load(0)[0].astype(int)
        assert np.abs(np.asarray(image) - wanted).mean() < 6  # of noise


def test_tokenizer_of_the_same_vocabulary_is_used(undisturbed):
    config = tiny(data__source=f"arrayrecord:{undisturbed}", text__vocab=1024)
    source = make_source(config)
    assert make_tokenizer(source, config).proto == (undisturbed / "tokenizer.model").read_bytes()
    assert (
        make_tokenizer(source, config).proto == Tokenizer.train(Storybook(16).captions(400), 1024, 24).proto
    )
    assert make_tokenizer(source, tiny(text__vocab=600)).size < 700


def test_killed_three_times_is_the_same_bytes(undisturbed, tmp_path, here):
    out = tmp_path / "out"
    for shards in (3, 8, 14):
        with unfinished(out):
            process = command("one", out)
            until(out, shards, process)
            process.kill()
            process.communicate()
    assert (out / ".plan.json").exists()
    (out / ".data-00000-of-00020.array_record.part").write_bytes(b"left by a kill")
    assert here(*STORY[:1], out, *STORY[1:])[0] == 0
    same(undisturbed, out)


def test_ctrl_c_then_two_processes_share_the_rest_and_a_third_finds_nothing_to_do(
    undisturbed, tmp_path, here
):
    out = tmp_path / "out"
    with unfinished(out):
        process = command("real", out, "--workers", "2")
        until(out, 2, process)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, "the same command goes on" in error, "Traceback" in error) == (
        130,
        True,
        False,
    )
    with unfinished(out):
        both = [command("one", out), command("one", out)]
        assert [process.stdout.readline() for process in both] == [
            "begun\n",
            "begun\n",
        ]  # while there is work left for both
    for process in both:
        text, error = process.communicate(timeout=60)
        assert (process.returncode, f"{out} is complete: 400 images" in text) == (0, True), error
    same(undisturbed, out)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    code, text, _ = here(*STORY[:1], out, *STORY[1:])
    assert (code, text.startswith(f"{out} was complete: 400 images of 16 px in 20 shards")) == (0, True)
    assert before == {p: p.stat().st_mtime_ns for p in out.iterdir()}


def workers_of(process):
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list the children of a process")
    command_line = lambda pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
    return [int(pid) for pid in children.read_text().split() if b"spawn_main" in command_line(pid)]


def wait_for_end(pid):
    """Waits until a process has ended; one that nobody has waited for is a zombie (Z)."""
    status = pathlib.Path(f"/proc/{pid}/stat")
    for _ in range(1000):
        try:
            if status.read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    pytest.fail("the worker goes on")


@pytest.mark.slow
def test_a_killed_worker_is_one_line_and_a_killed_command_ends_its_workers(undisturbed, tmp_path, here):
    out = tmp_path / "out"
    with unfinished(out):
        process = command("real", out, "--workers", "2")
        until(out, 2, process)
        killed, other = workers_of(process)
        os.kill(killed, signal.SIGKILL)
        _, error = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in error) == (2, False), error
        assert (
            "error: a worker process was killed, perhaps for want of memory: the same command goes on"
            in error
        )
        wait_for_end(other)
        process = command("real", out, "--workers", "2")
        until(out, len(list(out.glob("data-*"))) + 2, process)
        workers = workers_of(process)
        assert len(workers) == 2
        process.kill()
        process.communicate()
        for worker in workers:
            wait_for_end(worker)
    assert here(*STORY[:1], out, *STORY[1:])[0] == 0
    same(undisturbed, out)


def test_an_error_in_a_worker_is_one_line(tmp_path):
    write_tar(tmp_path / "a.tar", [member for i in range(20) for member in sample(i)])
    source, out = f"webdataset:{tmp_path / 'a.tar'}", tmp_path / "out"
    args = ("--size", "16", "--shard", "5", "--vocab", "300", "--workers", "2")
    (out / ".data-00001-of-00004.array_record.part").mkdir(parents=True)  # a directory cannot be written
    done = subprocess.run(
        [sys.executable, "-m", "dallegan", "prepare", source, str(out), *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert "error: cannot write" in done.stderr


def test_ctrl_c_while_the_workers_are_started_is_heard(tmp_path):
    process = command("early", tmp_path / "out", "--workers", "2")
    _, error = process.communicate(timeout=60)
    assert (process.returncode, "the same command goes on" in error, "Traceback" in error) == (
        130,
        True,
        False,
    )


def test_other_options_or_data_are_refused(undisturbed, tmp_path, here):
    for out in (undisturbed, tmp_path / "half"):
        if out != undisturbed:
            prepare.start_job(prepare.Args("storybook", str(out), 16, 400, 20), out.mkdir() or out)
        code, _, error = here(
            "storybook", out, "--size", 32, "--limit", 400, "--shard", 20, "--format", "png", "--vocab", 600
        )
        assert (code, error) == (
            2,
            f"error: {out} was begun with other options or data (size: 16 -> 32; vocab: 1024 -> 600): "
            "use the same options and data, or another OUT\n",
        )
    write_tar(tmp_path / "a.tar", sample(0) + sample(1))
    args = ("--size", 16)
    prepare.start_job(
        prepare.Args(f"webdataset:{tmp_path}/a.tar", str(tmp_path / "less"), 16),
        (tmp_path / "less").mkdir() or tmp_path / "less",
    )
    write_tar(tmp_path / "a.tar", sample(0))
    assert "(read: 2 -> 1)" in here(f"webdataset:{tmp_path}/a.tar", tmp_path / "less", *args)[2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["storybook", "{new}", "--size", 16],
            "storybook has no end: say how many images, for example --limit 100000",
        ),
        (
            ["storybok", "{new}", "--size", 16],
            f"choose {SOURCES}",
        ),
        (["folder:/absent", "{new}", "--size", 16], "no folder /absent"),
        (["storybook", "{new}", "--size", 0], "--size 0: must be from 1 to 4096"),
        (["storybook", "{new}", "--size", 16, "--vocab", 9], "--vocab 9: must be from 300"),
        (
            ["storybook", "/dev/null/out", *STORY[1:]],
            "cannot write /dev/null/out/.plan.json: Not a directory",
        ),
        (["storybook", "gs://b/x", *STORY[1:]], "mount the bucket (gcsfuse), or copy it"),
        (["storybook", "{full}", *STORY[1:]], "holds other files: name a new directory"),
        (["webdataset:{full}/bad.tar", "{new}", "--size", 16], "no image of webdataset:"),
        (
            ["storybook", "{new}", "--size", 16, "--encoding", "klingon"],
            "--encoding klingon: no such encoding; for example",
        ),
        (["folder:~nobody-at-all/x", "{new}", "--size", 16], "no such user"),
        (["arrayrecord:~nobody-at-all/x", "{new}", "--size", 16], "no such user"),
        (["tfds:x?data_dir=~nobody-at-all", "{new}", "--size", 16], "no such user"),
        (["webdataset:~nobody-at-all/*.tar", "{new}", "--size", 16], "no such user"),
    ],
)
def test_bad_input_is_one_line(tmp_path, here, args, message):
    (tmp_path / "full").mkdir()
    write_tar(tmp_path / "full" / "bad.tar", [("a.jpg", b"broken"), ("a.txt", b"x")])
    code, _, error = here(*(str(a).format(new=tmp_path / "new", full=tmp_path / "full") for a in args))
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error


def test_the_encoding_is_part_of_the_plan(tmp_path, here):
    write_tar(tmp_path / "a.tar", [*sample(0), ("b.png", image_file(1)), ("b.txt", "棕熊".encode("gbk"))])
    args = (f"webdataset:{tmp_path}/a.tar", tmp_path / "out", "--size", 16)
    assert here(*args, "--encoding", "gbk")[0] == 0
    assert ArrayRecord(str(tmp_path / "out"), 16).captions_of(1) == ["棕熊"]
    assert here(*args, "--encoding", "gbk")[0] == 0
    code, _, error = here(*args)
    assert (code, "other options or data (encoding: gbk -> ):" in error) == (2, True)
    about = json.loads((tmp_path / "out" / "manifest.json").read_text())
    del about["encoding"]  # as older versions wrote it
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(about))
    assert here(*args)[0] == 0
    assert "encoding:  -> gbk" in here(*args, "--encoding", "gbk")[2]


@pytest.mark.filterwarnings("always:a vocabulary of")  # shown, as outside of pytest
def test_more_characters_than_the_vocabulary_holds(tmp_path, here):
    characters = "".join(map(chr, range(0x4E00, 0x4F00)))
    write_tar(tmp_path / "a.tar", [("a.png", image_file(0)), ("a.txt", characters.encode()), *sample(1)])
    code, _, error = here(f"webdataset:{tmp_path}/a.tar", tmp_path / "out", "--size", 16, "--vocab", 300)
    assert error.startswith(
        "warning: a vocabulary of 300 tokens does not hold all characters of the captions"
    )
    assert (error.count("\n"), "(--text.vocab; of prepare: --vocab)" in error) == (1, True)
    assert (code, Tokenizer.load(tmp_path / "out" / "tokenizer.model", 24).size) == (0, 300)


def test_names_and_reasons_cannot_act_on_a_terminal(tmp_path, here):
    name = "\x1b]0;title\x07\nforged.png\tline\u202e.png"
    write_tar(
        tmp_path / "a.tar", [(name, b"broken"), (name[:-4] + ".txt", b"x"), *sample(0), ("\x1b[2J.txt", b"x")]
    )
    code, out, error = here(f"webdataset:{tmp_path}/a.tar", tmp_path / "out\x1b[2J", "--size", 16)
    assert code == 0
    log = (tmp_path / "out\x1b[2J" / "skipped.log").read_text()
    assert len(log.splitlines()) == 2
    assert r"a.tar:\x1b]0;title\x07\nforged.png\tline\u202e.png" in log
    assert "\x1b" not in log + out + error


@pytest.mark.parametrize(
    "damage", ["null", "[]", "{", "[" * 100_000, '{"size": {"a": []}}', '{"entry": 1, "skipped": 2}']
)
@pytest.mark.parametrize("name", [".plan.json", ".data-00000-of-00001.json"])
def test_damaged_notes_are_one_line(tmp_path, here, monkeypatch, name, damage):
    write_tar(tmp_path / "a.tar", sample(0))
    args = (f"webdataset:{tmp_path}/a.tar", tmp_path / "out", "--size", 16)
    monkeypatch.setattr(prepare, "write_manifest", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    assert here(*args)[0] == 130
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "run_workers", lambda job, workers: prepare.write_shards(job))
    (tmp_path / "out" / name).write_text(damage)
    code, _, error = here(*args)
    assert (code, error.count("\n")) == (2, 1), error
    assert "begin again" in error or "other options or data" in error


def test_a_source_that_stops_answering_is_no_reason_to_skip(tmp_path, here, monkeypatch):
    """An image that may be readable at the next try must not be missing from the bytes."""
    write_tar(tmp_path / "a.tar", [member for i in range(20) for member in sample(i)])
    load = WebDataset.load

    def flaky(self, index):
        if index > 12:
            raise OSError("HttpError: 503, try again")
        return load(self, index)

    args = (
        f"webdataset:{tmp_path / 'a.tar'}",
        tmp_path / "out",
        "--size",
        "16",
        "--shard",
        "10",
        "--vocab",
        "300",
    )
    monkeypatch.setattr(WebDataset, "load", flaky)
    code, _, error = here(*args)
    assert code == 1
    assert "HttpError: 503, try again; the same command goes on" in error
    monkeypatch.setattr(WebDataset, "load", load)
    assert here(*args)[0] == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["pictures"] == 20


def test_a_full_disk_is_one_line(tmp_path, here):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # stands for the disk: File too large
    try:
        code, _, error = here(*STORY[:1], tmp_path / "out", *STORY[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, error.count("\n"), "cannot write" in error, "File too large" in error) == (2, 1, True, True)
    assert here(*STORY[:1], tmp_path / "out", *STORY[1:])[0] == 0  # with room again, it goes on


@pytest.mark.parametrize(
    ("flags", "message"),
    [((), "Missing from dallegan prepare"), (("--size", 16, "--format", "gif"), "invalid choice 'gif'")],
)
def test_bad_flags_are_explained(here, tmp_path, flags, message):
    code, _, error = here("storybook", tmp_path / "new", *flags)
    assert (code, message in error, "--help" in error) == (2, True, True)


def test_help_teaches(here):
    code, out, _ = here("--help")
    assert code == 0
    assert {"SRC", "OUT", "--size", "--limit", "--workers"} <= set(out.split())


def test_the_manifest_describes_the_shards(undisturbed):
    import hashlib

    about = json.loads((undisturbed / "manifest.json").read_text())
    assert {
        k: about[k]
        for k in (
            "version",
            "source",
            "size",
            "limit",
            "shard",
            "format",
            "vocab",
            "read",
            "pictures",
            "skipped",
        )
    } == {
        "version": 1,
        "source": "storybook",
        "size": 16,
        "limit": 400,
        "shard": 20,
        "format": "png",
        "vocab": 1024,
        "read": 400,
        "pictures": 400,
        "skipped": {},
    }
    assert [s["name"] for s in about["shards"]] == [f"data-{k:05d}-of-00020.array_record" for k in range(20)]
    for shard in about["shards"]:
        assert hashlib.sha256((undisturbed / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
