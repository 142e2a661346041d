"""`dallegan prepare SRC OUT --size S`: any source to ArrayRecord shards, resized once, with a tokenizer.

A worker claims shard k by locking byte k of `.claims`; the lock is released when the process dies. Workers
may run on several machines that share the directory. A shard appears whole, after its notes. Once all are
there, whoever comes first writes skipped.log and, last of all, the manifest. Everything is a function of the
source and the options, so the bytes are the same whoever wrote them, and however often the command was
killed.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Annotated, Any, Literal

import msgpack
import numpy as np
import tyro
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from dallegan.config import Config, DataConfig, TextConfig
from dallegan.data.arrayrecord import MAX_MANIFEST, VERSION, read_manifest
from dallegan.data.file_source import FileSource, UnusableRecord
from dallegan.data.pipeline import TOKENIZER_EXAMPLES, make_source
from dallegan.data.source import ENDLESS, Source, describe
from dallegan.errors import UserError, as_user_error, is_permanent
from dallegan.io.cli import parse
from dallegan.io.files import local_path, lock_byte, parse_object, read_file, write_atomic, writing
from dallegan.io.image import ImageError
from dallegan.io.text import check_encoding, listed, say, shown
from dallegan.tokenizer import Tokenizer

# JPEG without chroma subsampling (4:4:4)
ENCODING: dict[str, dict[str, int]] = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}
UNFINISHED_TOKENIZER = ".tokenizer.model"  # its name until all shards are written
PLAN_BYTE = 2**40  # byte of `.claims` that is locked while the plan is made


@dataclasses.dataclass(frozen=True)
class Args:
    """Turn any source of captioned images into shards that training reads fast.

    Images are resized and encoded again, and a tokenizer is trained on the captions. SRC is folder:PATH,
    webdataset:PATTERN, tfds:NAME, arrayrecord:DIR, storybook or emoji. For example:

    dallegan prepare 'webdataset:shards/{00000..00099}.tar' data/mine-64 --size 64

    dallegan train storybook64 --data.source arrayrecord:data/mine-64

    You may stop or kill it at any time: the same command goes on. Run the same command on other machines that
    share OUT, and they help. Damaged images are skipped and named in OUT/skipped.log.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]  # source to read
    # directory to write: a new one, or one begun with the same options
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    size: int  # side of an image, pixels: the shorter side is resized to it, and the middle kept
    limit: int | None = None  # images to read, from the first on; default: all
    shard: int = 2000  # images per shard
    format: Literal["png", "jpeg", "webp"] | None = None  # default: png up to 64 px, above jpeg of quality 95
    workers: int | None = None  # processes; default: one per core
    vocab: int = TextConfig().vocab  # most tokens of the tokenizer; another --text.vocab trains its own
    encoding: str = ""  # of text files without a byte order mark, for example gbk; default: utf-8


@dataclasses.dataclass(frozen=True)
class Job:
    """A source, where its shards go, and how they are written."""

    source: Source
    out: pathlib.Path
    plan: dict[str, Any]  # the options that decide the bytes, and "read": images to read
    skipped: dict[str, str]  # the source's, when it was opened

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.plan["read"] // self.plan["shard"])

    @property
    def manifest(self) -> pathlib.Path:
        """The file that is written last."""
        return self.out / "manifest.json"

    def path(self, shard: int) -> pathlib.Path:
        """Returns the file of a shard."""
        return self.out / f"data-{shard:05d}-of-{self.shards:05d}.array_record"

    def notes(self, shard: int) -> pathlib.Path:
        """Returns the file of a shard's manifest entry and skipped images, until the manifest is written."""
        return self.out / f".{self.path(shard).stem}.json"

    def images_done(self) -> int:
        """Returns the number of images in finished shards."""
        finished = sum(self.path(k).exists() for k in range(self.shards))
        return min(self.plan["read"], self.plan["shard"] * finished)


def write_shards(job: Job) -> None:
    """Writes the shards that no other worker has claimed, until the manifest is there.

    Raises UserError if the directory cannot be written, or the source cannot be read.
    """
    with writing(job.out / ".claims"), open(job.out / ".claims", "ab") as claims:
        while not job.manifest.exists():
            missing = [k for k in range(job.shards) if not job.path(k).exists()]
            idle = True
            for k in missing or [job.shards]:  # the byte behind the shards' own claims the manifest
                with lock_byte(claims, k) as claimed:
                    if claimed:
                        idle = False
                        # another worker may have finished meanwhile
                        if k == job.shards and not job.manifest.exists():
                            write_manifest(job)
                        elif k < job.shards and not job.path(k).exists():
                            write_shard(job, k)
            if idle:
                time.sleep(0.1)


def write_shard(job: Job, shard: int) -> None:
    """Writes a shard and its notes."""
    path, skipped = job.path(shard), []
    part = path.with_name(f".{path.name}.part")
    first = shard * job.plan["shard"]
    indices = range(first, min(first + job.plan["shard"], job.plan["read"]))
    try:
        writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")  # images are compressed already
        for i in indices:
            try:
                image, captions = load(job.source, i)
            except (UnusableRecord, ImageError) as error:
                name = job.source.name(i) if isinstance(job.source, FileSource) else str(i)
                skipped.append((name, str(error).splitlines()[0]))
            else:
                writer.write(
                    msgpack.packb({"image": encode(image, job.plan["format"]), "captions": captions})
                )
        writer.close()
    except OSError as error:
        # the disk or the bucket failed; the image is not skipped, since it may be readable at the next try
        remedy = "mend it or remove it, and " if is_permanent(error) else ""
        message = f"cannot read {job.plan['source']}: {error}; {remedy}the same command goes on"
        raise as_user_error(error, message) from None
    except RuntimeError as error:  # array_record's own
        raise UserError(f"cannot write {part}: {error}") from None
    with open(part, "rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        os.fsync(file)
    entry = {"name": path.name, "pictures": len(indices) - len(skipped), "bytes": size, "sha256": digest}
    write_atomic(job.notes(shard), json.dumps({"entry": entry, "skipped": skipped}))
    part.replace(path)


def load(source: Source, index: int) -> tuple[np.ndarray, list[str]]:
    """Returns an image uint8[S, S, 3] and all its captions; a source that is not of files tells only one."""
    if isinstance(source, FileSource):
        return source.load(index)
    example = source.example(index, np.random.default_rng(index))
    return example.image, [example.caption]


def encode(image: np.ndarray, kind: str) -> bytes:
    """Returns uint8[H, W, 3] as an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **ENCODING[kind])
    return file.getvalue()


def write_manifest(job: Job) -> None:
    """Puts tokenizer.model in place, writes skipped.log and, last, manifest.json.

    Raises UserError if no image could be read.
    """
    try:
        notes = [parse_object(read_file(job.notes(k), MAX_MANIFEST)) for k in range(job.shards)]
        skipped = sorted(job.skipped.items()) + [
            (str(name), str(why)) for note in notes for name, why in note["skipped"]
        ]
        images = sum(note["entry"]["pictures"] for note in notes)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the notes in {job.out} are damaged ({error}): delete it and begin again") from None
    if not images:
        name, reason = skipped[0]
        count = f"{len(skipped)} skipped, the first is {name}: {reason}"
        raise UserError(f"no image of {job.plan['source']} could be read: {count}")
    reasons = collections.Counter(re.sub(r"\d+", "N", reason) for _, reason in skipped)
    with contextlib.suppress(FileNotFoundError):  # an earlier command may have been killed after this line
        (job.out / UNFINISHED_TOKENIZER).replace(job.out / "tokenizer.model")
    write_atomic(job.out / "skipped.log", listed(skipped))
    manifest = {"version": VERSION, **job.plan, "pictures": images, "skipped": dict(sorted(reasons.items()))}
    manifest["shards"] = [note["entry"] for note in notes]
    write_atomic(job.manifest, json.dumps(manifest, indent=1, ensure_ascii=False))


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def check_options(args: Args) -> dict[str, Any]:
    """Returns the options that decide the bytes. Raises UserError if one is out of range."""
    lowest = {"size": 1, "limit": 1, "shard": 1, "workers": 1, "vocab": 300}
    for name, low in lowest.items():
        value, high = getattr(args, name), 4096 if name == "size" else 10**9
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} {value}: must be from {low} to {high}")
    check_encoding(args.encoding, "--encoding")
    kind = args.format or ("png" if args.size <= 64 else "jpeg")
    numbers = {"size": args.size, "limit": args.limit, "shard": args.shard}
    return {"source": args.src, **numbers, "format": kind, "vocab": args.vocab, "encoding": args.encoding}


def check_same(begun: dict[str, Any], options: dict[str, Any], out: pathlib.Path) -> None:
    """Raises UserError if OUT was begun with other options, or when the source had other data."""
    before = {"encoding": ""} | begun  # what was prepared by older versions has none
    changed = [
        f"{name}: {before.get(name)} -> {value}"
        for name, value in options.items()
        if before.get(name) != value
    ]
    if changed:
        how = "use the same options and data, or another OUT"
        raise UserError(f"{out} was begun with other options or data ({'; '.join(changed)}): {how}")


def start_job(args: Args, out: pathlib.Path) -> Job:
    """Returns the job: plans it and trains the tokenizer, or joins a job that another command has planned.

    Raises UserError if the source is unusable, or OUT cannot be written or holds something else.
    """
    plan, plan_path = check_options(args), out / ".plan.json"
    with writing(plan_path):
        begun = plan_path.exists() or (out / "manifest.json").exists()
        if not begun and any(not p.name.startswith(".") for p in out.iterdir()):
            raise UserError(f"{out} holds other files: name a new directory")
        (out / ".claims").touch()  # finds out whether OUT can be written before the source is read
    threads = args.workers or cores()
    data = DataConfig(source=args.src, size=args.size, threads=threads, encoding=args.encoding)
    source = make_source(Config(data=data), check=False)
    skipped = dict(source.skipped)  # a copy: what is skipped later is in the notes of the shards
    for line in describe(source):
        say(line, sys.stderr, 1000)
    if len(source) > ENDLESS and not args.limit:
        raise UserError(f"{args.src} has no end: say how many images, for example --limit 100000")
    plan |= {"read": min(args.limit or len(source), len(source))}
    with writing(plan_path), open(out / ".claims", "ab") as claims, lock_byte(claims, PLAN_BYTE, wait=True):
        if not plan_path.exists():
            # the tokenizer comes first: too small a vocabulary should be reported now, not hours later
            captions = source.captions(min(TOKENIZER_EXAMPLES, plan["read"]))
            Tokenizer.train(captions, args.vocab, TextConfig().length).save(out / UNFINISHED_TOKENIZER)
            write_atomic(plan_path, json.dumps(plan))
        try:
            check_same(parse_object(read_file(plan_path)), plan, out)
        except (ValueError, OSError):
            raise UserError(f"{plan_path} is damaged: delete {out} and begin again") from None
    return Job(source, out, plan, skipped)


def end_with_parent(pipe: Connection) -> None:
    """Ends this worker process as soon as the other end of `pipe` is closed, or its process dies."""
    threading.Thread(target=lambda: (pipe.poll(None), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Blocks Ctrl-C for the processes started in the block; in this one it is raised at the end of the block.

    Processes inherit that the signal is blocked. Here, another thread may receive it, so a handler notes it.
    """
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


def run_workers(job: Job, workers: int) -> None:
    """Writes the shards in worker processes, and shows the progress.

    The workers end with this process, however it ends. Raises UserError if a worker fails or is killed.
    """
    context = multiprocessing.get_context("spawn")  # JAX, imported with the package, must not be forked
    theirs, ours = context.Pipe(duplex=False)
    tty = sys.stderr.isatty()
    with (
        ProcessPoolExecutor(workers, context, initializer=end_with_parent, initargs=(theirs,)) as pool,
        ours,  # closed first, which ends the workers, if an exception leaves this block
        tqdm(
            total=job.plan["read"],
            initial=job.images_done(),
            unit="img",
            desc=shown(job.out.name),
            dynamic_ncols=tty,
            mininterval=0.5 if tty else 30,
        ) as bar,
    ):
        try:
            with interrupts_deferred():
                running = {pool.submit(write_shards, job) for _ in range(workers)}
            while running:
                done, running = wait(running, timeout=0.5, return_when=FIRST_EXCEPTION)
                bar.update(job.images_done() - bar.n)
                for future in done:
                    future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory: "
                "the same command goes on, with fewer --workers"
            ) from None
        pool.shutdown()


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    args = parse(Args, "dallegan prepare", args=argv)
    out = local_path(args.out)
    complete = (out / "manifest.json").exists()
    if complete:
        check_same(read_manifest(out), check_options(args), out)
    else:
        job = start_job(args, out)
        try:
            run_workers(job, min(args.workers or cores(), job.shards))
        except KeyboardInterrupt:
            say(f"stopped; the same command goes on with {out}", sys.stderr)
            raise
    with writing(out / ".claims"):
        leftovers = [out / ".claims", out / ".plan.json", *out.glob(".data-*"), *out.glob(".*.part")]
        for leftover in leftovers:  # those of earlier commands that were killed, too
            leftover.unlink(missing_ok=True)
    manifest = read_manifest(out)
    skipped = sum(manifest["skipped"].values())
    say(
        f"{out} {'was' if complete else 'is'} complete: {manifest['pictures']} images of {manifest['size']} "
        f"px in {len(manifest['shards'])} shards. "
        + (f"{skipped} were skipped, named in {out / 'skipped.log'}. " if skipped else "")
        + f"Train on them: dallegan train --data.source arrayrecord:{out} --data.size {manifest['size']}"
    )
