"""Many prompts from a file: images a second, peak memory, and what a kill costs.

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
from dallegan.data.storybook.scenes import Storybook
from dallegan.io.cli import parse, run
from dallegan.run.machine import about
from dallegan.sampling import DEFAULT

SAMPLE = pathlib.Path(__file__).parent.parent / "sample.py"


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure sampling of many prompts."""

    model: str = DEFAULT
    few: int = 100  # prompts
    many: int = 1000
    n: int = 4  # pictures of each


def draw(prompts: list[str], out: pathlib.Path, args: Args, kill_at: int = 0) -> tuple[float, float]:
    """(seconds, peak MiB) of `sample.py`; killed once there are `kill_at` files, where that is above 0."""
    file = out.with_suffix(".txt")
    file.write_text("\n".join(prompts))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, SAMPLE, "--file", file, "--n", str(args.n), "--model", args.model, "--out", out], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while kill_at and (not out.exists() or len(os.listdir(out)) < kill_at):
        time.sleep(0.05)
    if kill_at:
        process.send_signal(signal.SIGKILL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def digest(out: pathlib.Path) -> str:
    """sha256 of all files of a directory, names included."""
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sorted(out.iterdir()))).hexdigest()


def main() -> None:
    """Measures and prints JSON."""
    args = parse(Args, "benchmarks/sample_many.py")
    captions = list(dict.fromkeys(Storybook(dallegan.load(args.model).config.data.size).captions(4 * args.many)))[: args.many]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        few, small = draw(captions[: args.few], folder / "few", args)
        many, big = draw(captions, folder / "many", args)
        until, _ = draw(captions, folder / "killed", args, args.many * args.n // 2)
        left = args.many * args.n - len(list((folder / "killed").glob("*-s0-*.png")))
        rest, _ = draw(captions, folder / "killed", args)
        again, _ = draw(captions, folder / "killed", args)
        same = digest(folder / "many") == digest(folder / "killed")
        pictures = len(list((folder / "many").glob("*-s0-*.png")))
    report = {
        "prompts": [args.few, args.many], "pictures": pictures, "seconds": [round(few, 1), round(many, 1)],
        "images_per_second_start_included": round(pictures / many, 1),
        "images_per_second": round((args.many - args.few) * args.n / (many - few), 1),
        "peak_mib": [round(small), round(big)], "peak_ratio": round(big / small, 3),
        "killed_after_seconds": round(until, 1), "pictures_left": left, "finished_in_seconds": round(rest, 1), "nothing_left_to_do_seconds": round(again, 1),
        "same_files_as_unkilled": same,
    }  # fmt: skip
    print(json.dumps(about() | {"model": args.model} | report, indent=2))


if __name__ == "__main__":
    sys.exit(run(main))
