"""Many prompts from a file: images per second, peak memory, and what a kill costs.

python benchmarks/sample_many.py [--model DIR] > benchmarks/results/sample_many.json
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import dallegan
from dallegan.commands import ModelName
from dallegan.data.storybook.scenes import Storybook
from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure sampling of many prompts."""

    model: ModelName = DEFAULT
    few: int = 100  # prompts
    many: int = 1000  # prompts
    n: int = 4  # images per prompt


def draw(prompts: list[str], out: pathlib.Path, args: Args, kill_at: int = 0) -> tuple[float, float]:
    """Returns the seconds and the peak MiB of `dallegan sample`, killed at `kill_at` files; 0: never."""
    file = out.with_suffix(".txt")
    file.write_text("\n".join(prompts))
    command = [
        sys.executable,
        "-m",
        "dallegan",
        "sample",
        "--file",
        file,
        "--model",
        args.model,
        "--out",
        out,
    ]
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--n", str(args.n)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while kill_at and (not out.exists() or len(os.listdir(out)) < kill_at):
        time.sleep(0.05)
    if kill_at:
        process.send_signal(signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def images(out: pathlib.Path) -> int:
    """Returns the number of images in a directory."""
    return len(list(out.glob("*-s0-*.png")))


def digest(out: pathlib.Path) -> str:
    """Returns a sha256 of the names and bytes of all files of a directory."""
    whole = b"".join(path.name.encode() + path.read_bytes() for path in sorted(out.iterdir()))
    return hashlib.sha256(whole).hexdigest()


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "benchmarks/sample_many.py")
    size, total = dallegan.load(args.model).config.data.size, args.many * args.n
    captions = list(dict.fromkeys(Storybook(size).captions(4 * args.many)))[: args.many]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        few, small = draw(captions[: args.few], folder / "few", args)
        many, big = draw(captions, folder / "many", args)
        until, _ = draw(captions, folder / "killed", args, total // 2)
        left = total - images(folder / "killed")
        rest, _ = draw(captions, folder / "killed", args)
        again, _ = draw(captions, folder / "killed", args)
        same = digest(folder / "many") == digest(folder / "killed")
        count = images(folder / "many")
    report = {
        "prompts": [args.few, args.many],
        "pictures": count,
        "seconds": [round(few, 1), round(many, 1)],
        "images_per_second_start_included": round(count / many, 1),
        "images_per_second": round((args.many - args.few) * args.n / (many - few), 1),
        "peak_mib": [round(small), round(big)],
        "peak_ratio": round(big / small, 3),
        "killed_after_seconds": round(until, 1),
        "pictures_left": left,
        "finished_in_seconds": round(rest, 1),
        "nothing_left_to_do_seconds": round(again, 1),
        "same_files_as_unkilled": same,
    }
    print(json.dumps(about() | {"model": args.model} | report, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
