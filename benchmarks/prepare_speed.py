"""Speed of `python -m dallegan.prepare`, and what kills do to its output.

python benchmarks/prepare_speed.py [--pictures 40000] > benchmarks/results/prepare_speed.json

Tars of 256 px JPEGs become shards once with one worker, once with all cores, and once more with all cores but killed (SIGKILL, workers and all) at
random moments and started again: the same bytes each time?
"""

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time

from PIL import Image

from dallegan.commands.prepare import cores
from dallegan.data.storybook.scenes import Storybook
from dallegan.io.cli import parse, run
from dallegan.run.machine import about

TAR = 1000  # pictures in each


@dataclasses.dataclass(frozen=True)
class Args:
    """Prepare, kill and compare."""

    pictures: int = 40_000
    size: int = 64  # pixels
    kills: int = 3
    seed: int = 0  # of their moments


def write(folder: pathlib.Path, pictures: int) -> None:
    """The tars."""
    story = Storybook(256)
    for first in range(0, pictures, TAR):
        with tarfile.open(folder / f"{first // TAR:05d}.tar", "w") as tar:
            for i in range(first, min(first + TAR, pictures)):
                example, file = story.example(i), io.BytesIO()
                Image.fromarray(example.image).save(file, "JPEG", quality=90)
                for suffix, data in (("jpg", file.getvalue()), ("txt", example.caption.encode())):
                    info = tarfile.TarInfo(f"{i:08d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def digest(out: pathlib.Path) -> str:
    """sha256 of all files of a directory, names included."""
    whole = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def attempt(command: list[str], kill_after: float | None = None) -> float:
    """Seconds of one start of the command; killed with all its workers, where it is told to be."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, told = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        if kill_after is not None:
            raise SystemExit("it was done before it could be killed: take more --pictures")
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {told}")
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "benchmarks/prepare_speed.py")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(folder, args.pictures)
        last = f"{(args.pictures - 1) // TAR:05d}"

        def command(out: str, workers: int) -> list[str]:
            source = f"webdataset:{folder}/{{00000..{last}}}.tar"
            return [sys.executable, "-m", "dallegan", "prepare", source, str(folder / out), "--size", str(args.size), "--workers", str(workers)]

        one = attempt(command("one", 1))
        every = attempt(command("every", cores()))
        rng = random.Random(args.seed)
        # each kill falls into what is left, so that the run is never done before its turn
        killed = [attempt(command("killed", cores()), rng.uniform(0.15, 0.3) * every) for _ in range(args.kills)]
        rest = attempt(command("killed", cores()))
        digests = [digest(folder / out) for out in ("one", "every", "killed")]
    report = {
        "pictures": args.pictures, "from": "256 px JPEGs of quality 90 in tars", "to": f"{args.size} px PNGs",
        "images_per_second_one_worker": round(args.pictures / one, 1), "images_per_second_all_cores": round(args.pictures / every, 1),
        "cores": cores(), "images_per_second_per_core": round(args.pictures / every / cores(), 1),
        "killed_after_seconds": [round(s, 1) for s in killed], "then_finished_in": round(rest, 1), "unkilled": round(every, 1),
        "identical": len(set(digests)) == 1, "sha256": digests[0],
    }  # fmt: skip
    print(json.dumps(about() | report, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
