"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases. A full disk costs a line, not the run."""

import contextlib
import json
import resource
import struct
import sys
import time

import pytest
from conftest import tiny

from dallegan.errors import UserError
from dallegan.run.boards import TensorBoard, WandB, make_boards
from dallegan.run.log import Log
from dallegan.run.metrics_file import evaluated, read_metrics
from dallegan.run.processes import Clock


def started(workdir, step=0, boards=()):
    log = Log(workdir, batch=8, steps=6, start=step, clock=Clock("init"), boards=boards)
    log.start()
    return log


def wait_for(condition):
    """Waits for what another thread or process writes."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_lines_that_no_run_wrote_are_passed_over(tmp_path):
    whole = {"step": 1, "images": 8, "images_per_second": 4.0, "alignment": 0.5}
    lines = [
        {"step": "x"}, {"step": 1}, whole | {"images_per_second": 0}, whole | {"images": None}, [], whole,
    ]  # fmt: skip
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 2, "ima'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert evaluated(tmp_path / "metrics.jsonl") == [whole | {"seconds": 2.0}]


def test_a_full_disk_costs_a_line_and_the_board(tmp_path):
    """A line and the board are lost, each with one warning; later lines are written, and the run can end."""
    log = started(tmp_path, boards=make_boards(tmp_path, tiny()))
    log.write(1)
    events = next((tmp_path / "tensorboard").iterdir())
    wait_for(lambda: b"goodput" in events.read_bytes())
    before, (soft, hard) = events.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    room = (tmp_path / "metrics.jsonl").stat().st_size + 20
    names = lambda: [str(w.message).split(" could")[0] for w in warned if w.category is UserWarning]
    with pytest.warns(UserWarning, match="could not be written") as warned:  # noqa: PT031
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            log.write(2)
            wait_for(lambda: len(names()) == 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        log.write(3)
        log.close()
    assert sorted(names()) == ["metrics.jsonl", "tensorboard"]
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 3]
    assert events.read_bytes().startswith(before)


def test_a_board_on_a_disk_that_stays_full_ends(tmp_path):
    """However many lines the board is given: SummaryWriter's thread lives, so that its queue never fills."""
    board = TensorBoard(tmp_path / "tensorboard")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.warns(UserWarning, match="tensorboard could not be written") as warned:  # noqa: PT031
            for step in range(200):
                board.write({"step": step, "images": step, "d_loss": 0.5, "g_loss": 0.5})
            board.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(warned) == 1


def wandb_records(path):
    """Reads the records of a W&B file: blocks of 32 KiB with pieces of records, each piece behind a header.

    The header is a checksum, the length, and the kind (1: a whole record, 4: the last piece of one).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield Record.FromString(record)
            record = b""


def test_weights_and_biases_gets_the_lines(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny(log__wandb="bears")
    other = wandb.init(project="own", dir=tmp_path)  # the caller's own run, which must stay apart
    for step in (1, 2):  # the second start resumes, and fails
        log = started(tmp_path, step - 1, [WandB(tmp_path, config)])
        with contextlib.suppress(ZeroDivisionError), contextlib.closing(log):
            log.write(step)
            assert step == 1 or 1 / 0
    other.log({"mine": 1})
    other.finish()
    found, ids = [], set()
    has_exit = lambda path: any(r.WhichOneof("record_type") == "exit" for r in wandb_records(path))
    paths = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    wait_for(lambda: all(map(has_exit, paths)))  # W&B's own process may write them late
    for path in paths:
        records = list(wandb_records(path))
        kinds = {
            kind: [r for r in records if r.WhichOneof("record_type") == kind]
            for kind in ("run", "exit", "history")
        }
        (begun,), (ended,) = kinds["run"], kinds["exit"]
        keys = {item.key or ".".join(item.nested_key) for r in kinds["history"] for item in r.history.item}
        ids.add(begun.run.run_id)
        lines = {"goodput", "images"} <= keys
        found.append((begun.run.project, begun.run.run_group, ended.exit.exit_code, lines, "mine" in keys))
    group = (tmp_path / "wandb.id").read_text()
    assert len(ids) == 3
    assert sorted(found) == [
        ("bears", group, 0, True, False), ("bears", group, 1, True, False), ("own", "", 0, False, True),
    ]  # fmt: skip
    log = started(tmp_path, 2, [WandB(tmp_path, config)])
    wandb.teardown()  # as if its process had died
    with pytest.warns(
        UserWarning, match=r"Weights & Biases gets no more of this run \(.*\); training goes on"
    ):
        log.write(3)
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_weights_and_biases_that_cannot_begin(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # it reads its settings once
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    message = r"^--log.wandb bears: No API key configured.*`wandb login`.*WANDB_MODE=offline keeps all here"
    with pytest.raises(UserError, match=message):
        make_boards(tmp_path, tiny(log__wandb="bears"))
    wandb.teardown()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'dallegan\[wandb\]'"):
        make_boards(tmp_path, tiny(log__wandb="bears"))
