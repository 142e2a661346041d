"""Speed of `dallegan prepare`, and what kills do to its output.

python benchmarks/prepare_speed.py [--pictures 40000] > benchmarks/results/prepare_speed.json

Tars of 256 px JPEGs become shards three times: with one worker, with all cores, and with all cores but killed
    (SIGKILL,
workers and all) at random moments and started again. The report says whether the bytes are the same each
time.
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

TAR = 1000  # images in each tar


@dataclasses.dataclass(frozen=True)
class Args:
    """Prepare, kill and compare."""

    pictures: int = 40_000  # images to prepare
    size: int = 64  # pixels
    kills: int = 3
    seed: int = 0  # of the moments of the kills


def write(folder: pathlib.Path, pictures: int) -> None:
    """Writes the tars."""
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
    """Returns a sha256 of the names and bytes of all files of a directory."""
    whole = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        whole.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def attempt(command: list[str], kill_after: float | None = None) -> float:
    """Returns the seconds that a command took, killed with all its workers after `kill_after` seconds."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    else:
        if kill_after is not None:
            raise SystemExit("the command ended before it could be killed: take more --pictures")
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {errors}")
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
            options = ["--size", str(args.size), "--workers", str(workers)]
            return [sys.executable, "-m", "dallegan", "prepare", source, str(folder / out), *options]

        one = attempt(command("one", 1))
        every = attempt(command("every", cores()))
        rng = random.Random(args.seed)
        # early enough that the work is never done before the last kill
        killed = [
            attempt(command("killed", cores()), rng.uniform(0.15, 0.3) * every) for _ in range(args.kills)
        ]
        rest = attempt(command("killed", cores()))
        digests = [digest(folder / out) for out in ("one", "every", "killed")]
    report = {
        "pictures": args.pictures,
        "from": "256 px JPEGs of quality 90 in tars",
        "to": f"{args.size} px PNGs",
        "images_per_second_one_worker": round(args.pictures / one, 1),
        "images_per_second_all_cores": round(args.pictures / every, 1),
        "cores": cores(),
        "images_per_second_per_core": round(args.pictures / every / cores(), 1),
        "killed_after_seconds": [round(s, 1) for s in killed],
        "then_finished_in": round(rest, 1),
        "unkilled": round(every, 1),
        "identical": len(set(digests)) == 1,
        "sha256": digests[0],
    }
    print(json.dumps(about() | report, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
