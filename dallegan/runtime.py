"""A process and the machine under it."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import sys
from typing import Any

import jax


def restart_with_huge_pages() -> None:
    """Starts this program over, once, with glibc's allocator asking for huge pages; nothing to do where that is not Linux's glibc.

    XLA takes a step's scratch memory anew each time, and touching it in pages of 4 KiB costs a step on a CPU an eighth of its time
    (benchmarks/LOG.md). glibc (2.35 or newer) reads the setting when a process starts, hence the restart; GLIBC_TUNABLES of
    one's own is left as it is.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def about() -> dict[str, Any]:
    """What a result was measured with: command, date, device, versions."""
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    return {
        "command": " ".join(["python", _script(), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": f"{os.cpu_count()} cores of {_processor()}" if on_cpu else f"{jax.device_count()} x {device.device_kind}",
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")},
    }


def _script() -> str:
    path = pathlib.Path(sys.argv[0])
    return f"-m dallegan.{path.stem}" if path.parent.name == "dallegan" else f"{path.parent.name}/{path.name}".lstrip("/")


def _processor() -> str:
    """Its name and its widest vector unit, which counts for more: "AMD EPYC" multiplies at 150 or at 450 GF/s on two cores."""
    try:
        with open("/proc/cpuinfo") as file:
            about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in file)}
    except OSError:
        about = {}
    flags = about.get("flags", "").split()
    unit = " (AVX-512)" if "avx512f" in flags else " (AVX2)" if "avx2" in flags else ""
    return about.get("model name", platform.processor()) + unit
