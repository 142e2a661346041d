"""Real processes that train together on this machine, through gloo, as the hosts of a pod do."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest
from conftest import final, tiny
from PIL import Image

from dallegan.config import to_json

DEVICES = 4
COUNT = "--xla_force_host_platform_device_count"
WORKER = pathlib.Path(__file__).parent / "worker.py"
SETTINGS = {
    "steps": 8, "batch": 16, "log__checkpoint": 48, "log__samples": 128, "log__metrics": 32,
    "text__length": 6, "model__attention": (), "text__encoder": "transformer",
}  # fmt: skip


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def launch(workdir, processes, faults=None, own=None, hang=1800, **changes):
    """Starts the processes of a run, with `DEVICES` devices in all.

    faults: {process: (fault, step)}. own: {process: settings of its own}. XLA on a CPU adds up a product in
    as many parts as it has threads, so each process gets the same number of threads, for equal bits.
    """
    env = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {COUNT}={DEVICES // processes}",
        "JAX_PLATFORMS": "cpu",
        "PJRT_NPROC": str(DEVICES),
    }
    address, started = f"localhost:{free_port()}", []
    for i in range(processes):
        settings = SETTINGS | changes | (own or {}).get(i, {}) | {"workdir": str(workdir)}
        place = {"coordinator": address, "processes": processes, "process": i}
        config = tiny(**settings, **{f"parallel__{name}": value for name, value in place.items()})
        file = workdir.parent / f"{workdir.name}-{i}.json"
        file.write_text(to_json(config))
        command = [sys.executable, *map(str, (WORKER, file, hang, *(faults or {}).get(i, ())))]
        started.append(
            subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return started


def finish(started, seconds=240):
    """Returns [(exit code, stderr)] for all processes."""
    ends = []
    for process in started:
        _, err = process.communicate(timeout=seconds)
        ends.append((process.returncode, err))
    return ends


def losses(workdir):
    """Returns the steps and losses in a metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    return [(line["step"], line["d_loss"], line["g_loss"]) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directory of the run in one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert finish(launch(workdir, 1))[0][0] == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_the_number_of_processes_changes_nothing(alone, tmp_path, processes):
    """Four devices in one, two or four processes end in the same state, to the bit."""
    ends = finish(launch(tmp_path / "run", processes))
    assert [code for code, _ in ends] == [0] * processes, ends
    assert final(tmp_path / "run") == final(alone)
    assert losses(tmp_path / "run") == losses(alone)


@pytest.mark.slow
def test_a_larger_network_starts_from_a_run(alone, tmp_path):
    """The model is restored to one device, and the new run has four, in one process or in two."""
    states = [final(alone)]
    for processes in (1, 2):
        workdir = tmp_path / f"of-{processes}"
        ended = finish(launch(workdir, processes, init_from=str(alone), model__blocks=2, steps=2))
        assert [code for code, _ in ended] == [0] * processes, ended
        states.append(final(workdir))
    assert states[1] == states[2] != states[0]


@pytest.mark.slow
def test_hosts_with_different_data_are_refused(tmp_path):
    own = {}
    for i, names in enumerate(("ab", "abc")):
        (tmp_path / names).mkdir()
        for name in names:
            Image.new("RGB", (16, 16), (ord(name), 0, 0)).save(tmp_path / names / f"{name}.png")
            (tmp_path / names / f"{name}.txt").write_text("a cat")
        own[i] = {"data__source": f"folder:{tmp_path / names}"}
    ends = finish(launch(tmp_path / "run", 2, own=own))
    assert [code for code, _ in ends] == [2, 2], ends
    assert "3 images here, and not the same on all processes" in ends[1][1]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_all_processes_say_what_the_main_process_finds_wrong(alone):
    ends = finish(launch(alone, 2, model__width=32))
    assert [code for code, _ in ends] == [2, 2], ends
    assert all("model.width: 16 -> 32" in err for _, err in ends), ends


@pytest.mark.slow
def test_a_run_resumes_with_another_number_of_processes(alone, tmp_path):
    """Four processes stop and save after SIGTERM to one; two resume and stop; one completes the run."""
    workdir = tmp_path / "run"
    for processes, target, at in ((4, 3, 2), (2, 0, 5)):
        ends = finish(launch(workdir, processes, {target: ("term", at)}))
        assert [code for code, _ in ends] == [0] * processes, ends
        assert "stopped and saved at step" in ends[0][1]
        assert at <= final(workdir)[0] < 8
    assert finish(launch(workdir, 1))[0][0] == 0
    assert final(workdir) == final(alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_takes_the_others_down(tmp_path, victim):
    started = launch(tmp_path / "run", 2, {victim: ("kill", 4)})
    assert started[victim].wait(timeout=200) == -9
    killed = time.monotonic()
    assert started[1 - victim].wait(timeout=90) not in (0, None)
    assert time.monotonic() - killed < 60
    finish(started)


@pytest.mark.slow
def test_a_hang_ends_with_the_stacks_of_every_process(tmp_path):
    """If the data of one process stop, it says where, and so does the process that waits for it."""
    longer_than_any_step = 20  # on a busy machine
    ends = finish(launch(tmp_path / "run", 2, {1: ("hang", 4)}, hang=longer_than_any_step))
    assert all(code not in (0, None) for code, _ in ends)
    shown = "\n".join(err for _, err in ends)
    assert "Timeout" in shown
    assert all("loop.py" in err and "in train" in err for _, err in ends), shown
    assert "in faulty" in ends[1][1]


@pytest.mark.slow
def test_a_full_disk_costs_two_processes_their_checkpoints_and_not_the_run(tmp_path):
    """They train to the end, say so, and fail. The same command completes the run once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no small tmpfs can be mounted here")
    try:
        (disk / "others").write_bytes(bytes(6 * 2**20 - 2**19))
        ends = finish(launch(disk / "run", 2))
        assert [code for code, _ in ends] == [2, 2], ends
        assert "COULD NOT BE WRITTEN" in ends[0][1]
        (disk / "others").unlink()
        ends = finish(launch(disk / "run", 2))
        assert [code for code, _ in ends] == [0, 0], ends
        assert final(disk / "run")[0] == 8
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
