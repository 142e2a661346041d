"""Compiles a preset's train step for a TPU slice that is not there.

    pip install libtpu
    python benchmarks/dryrun.py large256 [--topology v5e:16x16] [--fsdp 1 16] [--width W...] [--batch N]

Prints the memory of a chip, and the arithmetic and collectives of a step, as XLA plans them; the results
stand in benchmarks/results/dryrun_NAME.json. Nothing runs on a TPU: its compiler comes with libtpu and
needs none. Without libtpu, `--topology cpu:N` compiles for N simulated CPU devices.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from typing import Annotated, Any

import hlo
import tyro

from dallegan.errors import UserError
from dallegan.io.cli import parse, run


@dataclasses.dataclass(frozen=True)
class Args:
    """Compile for what is not there."""

    preset: Annotated[str, tyro.conf.Positional]
    topology: str = "v5e:16x16"  # a TPU slice as libtpu names it, or cpu:N
    fsdp: tuple[int, ...] = (1, 16, 256)
    width: tuple[
        int, ...
    ] = ()  # of the generator, the discriminator's in proportion, in multiples of 128; default: the preset's
    batch: int = 0  # default: the preset's


def devices(topology: str) -> list[Any]:
    """The devices of a slice; JAX's own, where it is cpu:N. UserError where there is no such slice."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # this is no TPU VM
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        os.environ["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={shape} --xla_backend_optimization_level=0"
        )
    import jax
    from jax.experimental import topologies

    if kind == "cpu":
        return list(jax.devices())
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # of libtpu, or of its absence
        raise UserError(
            f"--topology {topology}: {str(error).splitlines()[0]} (pip install libtpu; v5e:2x2, v4:2x2x2)"
        ) from None


def plan(config: Any, on: list[Any]) -> dict[str, Any]:
    """What XLA says of a step."""
    import jax

    from dallegan.optim import make_optimizer
    from dallegan.parallel import make_runner
    from dallegan.sampling import make_gan

    gan = make_gan(config, config.text.vocab)
    runner = make_runner(gan, make_optimizer(gan, config.optim, config.steps), config, on)
    rows = lambda shape, dtype: jax.ShapeDtypeStruct(
        (config.batch, *shape), dtype, sharding=runner.batch_sharding
    )
    side, tokens = config.data.size, rows((config.text.ids,), "int32")
    start = time.perf_counter()
    runner.compile(
        runner.global_abstract,
        {"image": rows((side, side, 3), "uint8"), "tokens": tokens, "negative": tokens},
    )
    mb = lambda given: {kind: round(n / 1e6, 1) for kind, n in given.items() if n}
    count = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in runner.abstract.params.items()
    }
    return {
        "state_gib_of_a_device": round(runner.state_bytes() / 2**30, 3),
        "gib_of_a_device": round(hlo.planned_bytes(runner.executable) / 2**30, 3),
        "tflop_of_a_device": round(hlo.flops(runner.executable) / 1e12, 3),
        "collectives_mb": mb(hlo.collectives(runner.executable.as_text())),
        "expected_collectives_mb": mb(hlo.expected(runner)),
        "parameters_m": round(sum(count.values()) / 1e6, 1),
        "compile_seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Compiles and prints JSON."""
    args = parse(Args, "benchmarks/dryrun.py")
    on = devices(args.topology)
    from dallegan.config import load_preset
    from dallegan.run.machine import about

    config = load_preset(args.preset)
    rows, usual = [], config.model.width
    for width, fsdp in itertools.product(args.width or [usual], args.fsdp):
        critic = tuple(
            max(1, round(n * width / usual / 128)) * 128 if width != usual else n
            for n in config.model.critic_widths
        )
        model = dataclasses.replace(config.model, width=width, critic_widths=critic)
        parallel = dataclasses.replace(config.parallel, fsdp=fsdp, precision="bfloat16")
        try:
            row = plan(
                dataclasses.replace(config, batch=args.batch or config.batch, model=model, parallel=parallel),
                on,
            )
        except UserError:
            raise
        except Exception as error:  # XLA refuses what does not fit
            row = {"refused": str(error).strip().splitlines()[0][:300]}
        rows.append({"width": width, "fsdp": fsdp} | row)
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(
        json.dumps(
            about()
            | {
                "topology": args.topology,
                "devices": len(on),
                "batch": args.batch or config.batch,
                "rows": rows,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    sys.exit(run(main))
