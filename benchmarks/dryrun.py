"""Compiles a preset's train step for a TPU slice that is not there: memory of a chip, arithmetic and collectives of a step, as XLA plans them.

pip install libtpu && python benchmarks/dryrun.py large256 [--topology v5e:16x16] [--fsdp 1 16 256] [--batch N] > benchmarks/results/dryrun_NAME.json

Nothing runs on a TPU: XLA's compiler for it comes with libtpu and needs none. Without libtpu, `--topology cpu:N` compiles for N simulated CPU devices.
"""

import collections
import dataclasses
import json
import math
import os
import re
import sys
import time
from typing import Annotated, Any

import tyro

from dallegan.cli import parse, run
from dallegan.errors import UserError

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Args:
    """Compile for what is not there."""

    preset: Annotated[str, tyro.conf.Positional]
    topology: str = "v5e:16x16"  # a TPU slice as libtpu names it, or cpu:N
    fsdp: tuple[int, ...] = (1, 16, 256)
    batch: int = 0  # default: the preset's
    strategy: str = "jit"


def devices(topology: str) -> list[Any]:
    """The devices of a slice; JAX's own, where it is cpu:N. UserError where there is no such slice."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this is no TPU VM
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={shape}"
    import jax
    from jax.experimental import topologies

    if kind == "cpu":
        return list(jax.devices())
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of libtpu, or of its absence
        raise UserError(f"--topology {topology}: {str(error).splitlines()[0]} (pip install libtpu; v5e:2x2, v5e:16x16, v4:2x2x2, ...)") from None


def size(shapes: str) -> int:
    """Bytes of an HLO type, tuples included."""
    return sum(BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in SHAPE.findall(shapes))


def collectives(text: str) -> dict[str, dict[str, float]]:
    """{kind: {"count", "megabytes"}} of a compiled program: each instruction's result on one device (an asynchronous one's last part)."""
    found: dict[str, dict[str, float]] = collections.defaultdict(lambda: {"count": 0, "megabytes": 0.0})
    for shapes, kind in COLLECTIVE.findall(text):
        found[kind]["count"] += 1
        found[kind]["megabytes"] += size(shapes) / 1e6
    return {kind: {name: round(value, 3) for name, value in row.items()} for kind, row in found.items()}


def plan(config: Any, on: list[Any]) -> dict[str, Any]:
    """What XLA says of a step."""
    import jax

    from dallegan.optim import optimizer
    from dallegan.parallel import Runner
    from dallegan.sampling import make_gan
    from dallegan.state import init_state
    from dallegan.steps import make_train_step

    gan, adam = make_gan(config, config.text.vocab), optimizer(config)
    runner = Runner(config, lambda: init_state(gan, adam, config), lambda axis: make_train_step(gan, adam, config, axis), on)
    rows = lambda shape, dtype: jax.ShapeDtypeStruct((config.batch, *shape), dtype, sharding=runner.batch_sharding)
    side, tokens = config.data.size, rows((config.text.ids,), "int32")
    start = time.perf_counter()
    runner.compile(runner.global_abstract, {"image": rows((side, side, 3), "uint8"), "tokens": tokens, "negative": tokens})
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in runner.abstract.params.items()}
    return {
        "fsdp": config.parallel.fsdp, "state_gib_of_a_device": round(runner.state_bytes() / 2**30, 3), "gib_of_a_device": round(runner.memory() / 2**30, 3),
        "tflop_of_a_device": round(runner.flops() / 1e12, 3), "collectives": collectives(runner.text()),
        "least_megabytes_of_gradients": round(4 * sum(count.values()) / 1e6, 1), "parameters_m": round(sum(count.values()) / 1e6, 1),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip


def main() -> None:
    """Compiles and prints JSON."""
    args = parse(Args, "benchmarks/dryrun.py")
    on = devices(args.topology)
    from dallegan.config import load_preset
    from dallegan.runtime import about

    config = load_preset(args.preset)
    rows = []
    for fsdp in args.fsdp:
        parallel = dataclasses.replace(config.parallel, fsdp=fsdp, precision="bfloat16", strategy=args.strategy)
        try:
            rows.append(plan(dataclasses.replace(config, batch=args.batch or config.batch, parallel=parallel), on))
        except UserError:
            raise
        except Exception as error:  # XLA refuses what does not fit
            rows.append({"fsdp": fsdp, "refused": str(error).strip().splitlines()[0][:300]})
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps(about() | {"topology": args.topology, "devices": len(on), "batch": args.batch or config.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(run(main))
