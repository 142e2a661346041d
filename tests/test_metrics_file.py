"""Any line of metrics.jsonl is read as what a run writes, or passed over."""

import contextlib
import json
import os

import pytest

from dallegan.commands.hub import measured
from dallegan.run.log import Log
from dallegan.run.metrics_file import evaluated, read_metrics
from dallegan.run.processes import Clock
from dallegan.run.report import can_report, write_report

GOOD = {"step": 1, "images": 32, "images_per_second": 8.0, "alignment": 0.5, "r1": None, "skipped": 1}
GOOD |= {"seconds": {"step": 4.0}}
NAMES = ["images", "images_per_second", "alignment", "d_loss", "skipped", "seconds", "goodput"]
VALUES = [None, "1", [1], {"a": 1}, True, 10**400, -1, 0, 1e-320, 1e308, "\x1b]0;x\x07", {"step": None}, [[]]]


@pytest.fixture
def run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def read_by_all(run):
    """Has the file read by everything that reads it."""
    lines = read_metrics(run / "metrics.jsonl")
    scored = evaluated(run / "metrics.jsonl")
    measured(str(run))
    with contextlib.closing(Log(run, 8, 10, 5, Clock("start"))):
        pass
    if lines and can_report():
        write_report(run)
    return lines, scored


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_another_kind_is_left_out(run, name):
    lines = [GOOD | {"step": i + 2, name: value} for i, value in enumerate(VALUES)]
    text = "".join(json.dumps(line) + "\n" for line in (GOOD, *lines))
    (run / "metrics.jsonl").write_text(text + text.replace("null", "NaN").replace("-1", "-Infinity"))
    found, scored = read_by_all(run)
    assert len(found) == 2 * (1 + len(VALUES))
    assert found[0] == GOOD
    assert all(
        isinstance(x, int | float) or x is None
        for line in found
        for x in line.values()
        if x != line.get("seconds")
    )
    assert scored[0]["alignment"] == 0.5


@pytest.mark.parametrize(
    "line",
    [
        "null",
        "[]",
        "[[1]]",
        "7",
        '"step"',
        "{}",
        '{"step": null}',
        '{"step": "1"}',
        '{"step": true}',
        '{"step": 1.5}',
        '{"step": [1]}',
        '{"step": 1' + "0" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"step": 1, "x": "' + "\\ud800" * 3,
        "\x00\x01\xff",
        "{'step': 1}",
    ],
)
def test_what_is_no_line_is_passed_over(run, line):
    (run / "metrics.jsonl").write_text(f"{line}\n{json.dumps(GOOD)}\n{line}\r\n\n{line}", "utf-8")
    assert read_by_all(run)[0] == [GOOD]


@pytest.mark.parametrize(
    "text", ["[" * 600 + "]" * 600, '{"steps": "<b>", "data": [1]}', "null", '{"a":' * 900 + "1" + "}" * 900]
)
@pytest.mark.parametrize("name", ["config.json", "machine.json"])
def test_a_report_shows_what_is_beside(run, name, text):
    (run / "metrics.jsonl").write_text(json.dumps(GOOD))
    (run / name).write_text(text)
    if can_report():
        assert "<b><" not in write_report(run).read_text()
    (run / name).unlink()
    os.mkfifo(run / name)
    if can_report():
        write_report(run)


@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_a_file_of_another_kind_is_an_error(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**33)
    with pytest.raises(OSError, match=r"not a regular file|larger than 268 MB"):
        read_metrics(path)
