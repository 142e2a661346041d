"""Reads from a compiled program what its devices exchange, and what a step takes."""

import collections
import math
import re
from typing import Any

import jax

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\((.*)"
)
SHAPE = re.compile(r"\b([a-z]+\d+)\[([\d,]*)\]")
# [groups,size]<=[...], {{0,1},{2,3}} or, from JAX 0.12 on, mesh['data'=2,'fsdp'=4] {'fsdp'}
GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}|mesh\[(.*?)\] ?\{(.*?)\})")


def members(instruction: str) -> int:
    """Devices in a group of a collective. ValueError for a notation that is not known here."""
    found = GROUPS.search(instruction)
    if not found:
        raise ValueError(f"no replica groups in {instruction[:200]}")
    size, first, mesh, axes = found.groups()
    if mesh is not None:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", axes))
    return int(size) if size else first.count(",") + 1


def collectives(text: str) -> dict[str, int]:
    """Returns {kind: bytes of the whole arrays that are gathered, scattered or reduced}, once a loop."""
    found: dict[str, int] = collections.defaultdict(int)
    for types, kind, start, rest in COLLECTIVE.findall(text):
        shapes = SHAPE.findall(types)
        if start and kind != "all-reduce":  # the operands are named before the results
            shapes = shapes[len(shapes) // 2 :]
        size = sum(BYTES[name] * math.prod(int(n) for n in dims.split(",") if n) for name, dims in shapes)
        found[kind] += size * members(rest) if kind == "reduce-scatter" else size
    return dict(found)


def flops(executable: Any) -> float:
    """Returns XLA's count of one device's floating-point operations in one step, one turn of a loop."""
    return float(executable.cost_analysis()["flops"])


def planned_bytes(executable: Any) -> int:
    """Returns the bytes on each device that XLA plans for one step: state, batch and scratch."""
    plan = executable.memory_analysis()
    arguments = plan.argument_size_in_bytes - plan.alias_size_in_bytes
    return arguments + plan.temp_size_in_bytes + plan.output_size_in_bytes


def expected(runner: Any) -> dict[str, int]:
    """Returns `collectives` if each split parameter is gathered and each gradient reduced once."""
    sizes = {True: 0, False: 0}  # of what is split, and of what is not
    for x, s in zip(
        jax.tree.leaves(runner.abstract.params), jax.tree.leaves(runner.state_shardings.params), strict=True
    ):
        sizes["fsdp" in s.spec] += x.size * x.dtype.itemsize
    data, fsdp = (runner.mesh.shape[name] for name in ("data", "fsdp"))
    reduced = (sizes[True] // fsdp if data > 1 else 0) + (sizes[False] if data * fsdp > 1 else 0)
    return {"all-gather": sizes[True], "reduce-scatter": sizes[True], "all-reduce": reduced}
