"""Any source to ArrayRecord shards, resized once: `python -m dallegan.prepare SRC OUT --size S`, then train on `arrayrecord:OUT`.

A shard is made by whoever locks its byte in `.claims`, a worker of this command or of another one on the same file system; a kill releases it.
It appears whole, after its notes. Once all are there, whoever comes first writes skipped.log and, last of all, the manifest. Everything is a
function of the source and the options, so the bytes are the same whoever made them, and however often it was killed.
"""

import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgpack
import numpy as np
import tyro
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from dallegan.config import Config, DataConfig, TextConfig
from dallegan.data.arrayrecord import VERSION, local, read_manifest
from dallegan.data.pipeline import CAPTIONS_OF, make_source
from dallegan.data.source import Files, Source, Unusable
from dallegan.errors import UserError, as_user_error, is_permanent
from dallegan.io.cli import parse
from dallegan.io.files import lock_byte, write_atomic, writing
from dallegan.io.image import ImageError
from dallegan.tokenizer import Tokenizer

QUALITY: dict[str, dict[str, int]] = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"quality": 95},
}  # subsampling 0: 4:4:4
TOKENIZER = ".tokenizer.model"  # until all is there
ENDLESS = 10**9  # pictures
BEGIN = 2**40  # the byte of `.claims` that is locked while a directory is begun


@dataclasses.dataclass(frozen=True)
class Args:
    """Turn any source of captioned pictures into shards that training reads fast: resized, re-encoded, with a tokenizer trained on the captions.

    SRC is folder:PATH, webdataset:PATTERN, tfds:NAME, arrayrecord:DIR, storybook or emoji. For example:
    python -m dallegan.prepare 'webdataset:shards/{00000..00099}.tar' data/mine-64 --size 64, then
    python train.py storybook64 --data.source arrayrecord:data/mine-64. Stop it whenever you like, or kill it: the same command goes on. The same
    command on other machines that share OUT helps. Damaged pictures are skipped and named in OUT/skipped.log.
    """

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]  # what to read
    out: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")
    ]  # directory to write: a new one, or one begun with the same options
    size: int  # picture side, pixels: the shorter side is resized to it, the middle kept
    limit: int | None = None  # pictures to read, from the first on; default: all
    shard: int = 2000  # pictures a shard
    format: Literal["png", "jpeg", "webp"] | None = (
        None  # default: png, lossless, up to 64 px; above, jpeg of quality 95
    )
    workers: int | None = None  # processes; default: one a core
    vocab: int = (
        TextConfig().vocab
    )  # most tokens of the tokenizer; training with another --text.vocab makes its own


@dataclasses.dataclass(frozen=True)
class Job:
    """What there is to do."""

    source: Source
    out: pathlib.Path
    plan: dict[str, Any]  # the options that decide the bytes, and "read": pictures to read
    skipped: dict[str, str]  # when the source was opened

    @property
    def shards(self) -> int:
        """How many."""
        return -(-self.plan["read"] // self.plan["shard"])

    def path(self, shard: int) -> pathlib.Path:
        """The file of a shard."""
        return self.out / f"data-{shard:05d}-of-{self.shards:05d}.array_record"

    def notes(self, shard: int) -> pathlib.Path:
        """Its entry in the manifest, and what it skipped, until the manifest is there."""
        return self.out / f".{self.path(shard).stem}.json"


def work(job: Job, tick: Callable[[int], None]) -> None:
    """Makes shards that no other worker has locked, until the manifest is there. tick: gets 1 for each picture, and minus its pictures for a shard that is
    complete, since those are counted by their files. UserError where it cannot be written, or the source not be read."""
    with writing(job.out / ".claims"), open(job.out / ".claims", "ab") as claims:
        while not (job.out / "manifest.json").exists():
            left = [k for k in range(job.shards) if not job.path(k).exists()]
            busy = False
            for k in left or [job.shards]:
                with lock_byte(claims, k) as mine:
                    if mine and k == job.shards:
                        if not (
                            job.out / "manifest.json"
                        ).exists():  # another may have finished meanwhile, and put the notes away
                            finish(job)
                    elif mine and not job.path(k).exists():
                        make(job, k, tick)
                    busy |= mine
            if not busy:
                time.sleep(0.1)


def make(job: Job, shard: int, tick: Callable[[int], None]) -> None:
    """Writes a shard and its notes."""
    path, first, skipped = job.path(shard), shard * job.plan["shard"], []
    part = path.with_name(f".{path.name}.part")
    indices = range(first, min(first + job.plan["shard"], job.plan["read"]))
    try:
        writer = ArrayRecordWriter(str(part), "group_size:1,uncompressed")  # pictures are compressed already
        for i in indices:
            try:
                image, texts = read(job.source, i)
            except (Unusable, ImageError) as error:
                skipped.append(
                    (
                        job.source.name(i) if isinstance(job.source, Files) else str(i),
                        str(error).splitlines()[0],
                    )
                )
            else:
                writer.write(msgpack.packb({"image": encode(image, job.plan["format"]), "captions": texts}))
            tick(1)
        writer.close()
    except OSError as error:  # of the disk or the bucket, not of the picture: it may be there at the next try, and the bytes must be the same
        mend = "mend it or take it away, and " if is_permanent(error) else ""
        raise as_user_error(
            error, f"cannot read {job.plan['source']}: {error}; {mend}the same command goes on"
        ) from None
    except RuntimeError as error:  # the package's own
        raise UserError(f"cannot write {part}: {error}") from None
    with open(part, "rb") as file:
        digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        os.fsync(file)
    entry = {"name": path.name, "pictures": len(indices) - len(skipped), "bytes": size, "sha256": digest}
    write_atomic(job.notes(shard), json.dumps({"entry": entry, "skipped": skipped}))
    part.replace(path)
    tick(-len(indices))


def read(source: Source, index: int) -> tuple[np.ndarray, list[str]]:
    """A picture uint8[S, S, 3], and all its captions; of a source that draws, one."""
    if isinstance(source, Files):
        return source.read(index)
    example = source.example(index, np.random.default_rng(index))
    return example.image, [example.caption]


def encode(image: np.ndarray, kind: str) -> bytes:
    """A picture file of uint8[H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **QUALITY[kind])
    return file.getvalue()


def finish(job: Job) -> None:
    """Puts tokenizer.model in place, writes skipped.log and, last, manifest.json. UserError where no picture could be read."""
    notes = [json.loads(job.notes(k).read_text()) for k in range(job.shards)]
    skipped = sorted(job.skipped.items()) + [tuple(pair) for note in notes for pair in note["skipped"]]
    pictures = sum(note["entry"]["pictures"] for note in notes)
    if not pictures:
        raise UserError(
            f"no picture of {job.plan['source']} could be read: {len(skipped)} skipped, the first {skipped[0]}"
        )
    reasons = collections.Counter(re.sub(r"\d+", "N", reason) for _, reason in skipped)
    with contextlib.suppress(FileNotFoundError):  # a kill has come after this line once before
        (job.out / TOKENIZER).replace(job.out / "tokenizer.model")
    write_atomic(job.out / "skipped.log", "".join(f"{name}\t{reason}\n" for name, reason in skipped))
    about = {
        "version": VERSION,
        **job.plan,
        "pictures": pictures,
        "skipped": dict(sorted(reasons.items())),
        "shards": [n["entry"] for n in notes],
    }
    write_atomic(job.out / "manifest.json", json.dumps(about, indent=1, ensure_ascii=False))


def cores() -> int:
    """Of those that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def options(args: Args) -> dict[str, Any]:
    """Those that decide the bytes. UserError for bad ones."""
    for name in ("size", "limit", "shard", "workers", "vocab"):
        value, low, high = (
            getattr(args, name),
            300 if name == "vocab" else 1,
            4096 if name == "size" else 10**9,
        )
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name} {value}: must be from {low} to {high}")
    kind = args.format or ("png" if args.size <= 64 else "jpeg")
    return {
        "source": args.src,
        "size": args.size,
        "limit": args.limit,
        "shard": args.shard,
        "format": kind,
        "vocab": args.vocab,
    }


def same(begun: object, asked: dict[str, Any], out: pathlib.Path) -> None:
    """UserError where OUT was begun with other options, or when there were other data."""
    before = begun if isinstance(begun, dict) else {}
    if different := [
        f"{name}: {before.get(name)} -> {value}" for name, value in asked.items() if before.get(name) != value
    ]:
        raise UserError(
            f"{out} was begun otherwise ({'; '.join(different)}): take the same options and data, or another OUT"
        )


def begin(args: Args, out: pathlib.Path) -> Job:
    """The job, as whoever began it planned it. UserError for a bad source, or an OUT that is another's or cannot be written."""
    plan, path = options(args), out / ".plan.json"
    with writing(path):
        if (
            not path.exists()
            and not (out / "manifest.json").exists()
            and any(not p.name.startswith(".") for p in out.iterdir())
        ):
            raise UserError(f"{out} holds other files: name a new directory")
        (out / ".claims").touch()  # writable? before the source is read
    source = make_source(
        Config(data=DataConfig(source=args.src, size=args.size, threads=args.workers or cores())), check=False
    )
    skipped = dict(
        getattr(source, "skipped", {})
    )  # now: what is found out later is in the notes of the shards
    if len(source) > ENDLESS and not args.limit:
        raise UserError(f"{args.src} has no end: say how many pictures, for example --limit 100000")
    plan |= {"read": min(args.limit or len(source), len(source))}
    with writing(path), open(out / ".claims", "ab") as claims, lock_byte(claims, BEGIN, wait=True):
        if not path.exists():
            captions = source.captions(
                min(CAPTIONS_OF, plan["read"])
            )  # first: too small a vocabulary should be found out now, not hours later
            Tokenizer.train(captions, args.vocab, TextConfig().length).save(out / TOKENIZER)
            write_atomic(path, json.dumps(plan))
        try:
            same(json.loads(path.read_text("utf-8")), plan, out)
        except ValueError:
            raise UserError(f"{path} is damaged: delete {out} and begin again") from None
    return Job(source, out, plan, skipped)


def worker(job: Job, made: Any, me: int, errors: Any) -> None:
    """A worker process: ends with the command that started it, and tells it of an error."""

    def tick(n: int) -> None:
        made[me] += n

    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    try:
        work(job, tick)
    except UserError as error:
        errors.put(error)


def share(job: Job, workers: int) -> None:
    """Does the job with processes; this one shows how far it is. UserError where one fails."""
    context = multiprocessing.get_context("spawn")  # JAX, imported with the package, must not be forked
    made, errors = (
        context.RawArray("q", workers),
        context.SimpleQueue(),
    )  # pictures of unfinished shards by worker
    # Ctrl-C is for this process, whose end is the workers': they inherit that it is blocked. Here another thread may take it meanwhile, so it is kept.
    early: list[int] = []
    old = signal.signal(signal.SIGINT, lambda number, _: early.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    processes = [
        context.Process(target=worker, args=(job, made, i, errors), daemon=True) for i in range(workers)
    ]
    for process in processes:
        process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGINT, old)
    if early:
        raise KeyboardInterrupt
    reached = lambda: min(
        job.plan["read"], job.plan["shard"] * sum(job.path(k).exists() for k in range(job.shards)) + sum(made)
    )
    tty = sys.stderr.isatty()
    with tqdm(
        total=job.plan["read"],
        initial=reached(),
        unit="img",
        dynamic_ncols=tty,
        mininterval=0.5 if tty else 30,
        desc=job.out.name,
    ) as bar:
        while errors.empty() and any(process.is_alive() for process in processes):
            multiprocessing.connection.wait(
                [process.sentinel for process in processes if process.is_alive()], 0.5
            )
            bar.update(max(0, reached() - bar.n))
    if not errors.empty():
        raise errors.get()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise UserError(
            f"a worker ended with exit code {failed[0]}, killed perhaps for want of memory: the same command goes on, with fewer --workers"
        )


def main(argv: Sequence[str]) -> None:
    """Parses the command line and prepares."""
    args = parse(Args, "dallegan prepare", args=argv)
    out = local(args.out)
    if there := (out / "manifest.json").exists():
        same(read_manifest(out), options(args), out)
    else:
        job = begin(args, out)
        try:
            share(job, min(args.workers or cores(), job.shards))
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on with {out}", file=sys.stderr)
            raise
    with writing(out / ".claims"):
        for leftover in [
            out / ".claims",
            out / ".plan.json",
            *out.glob(".data-*"),
            *out.glob(".*.part"),
        ]:  # a kill may have left them
            leftover.unlink(missing_ok=True)
    made = read_manifest(out)
    skipped = (
        f" {sum(made['skipped'].values())} were skipped, named in {out / 'skipped.log'}."
        if made.get("skipped")
        else ""
    )
    print(
        f"{out} {'was' if there else 'is'} complete: {made['pictures']} pictures of {made['size']} px in {len(made['shards'])} shards.{skipped} "
        f"Train on them: python train.py --data.source arrayrecord:{out} --data.size {made['size']}"
    )
