"""The machine under a run: what a result was measured with, and memory in huge pages."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys
from typing import Any

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = "jax", "jaxlib", "flax", "optax"  # whose versions decide numbers and speed


def about() -> dict[str, Any]:
    """Returns what a result was measured with: the command, the date, the device and versions of packages."""
    import jax  # takes seconds, which `restart_with_huge_pages` must not take

    first, versions = jax.devices()[0], {name: importlib.metadata.version(name) for name in PACKAGES}
    device = f"{jax.device_count()} x {first.device_kind}"
    if first.platform == "cpu":
        device = f"{os.cpu_count()} cores of {_processor()}"
    return {
        "command": f"{_program()} {shlex.join(sys.argv[1:])}".rstrip(),
        "date": datetime.date.today().isoformat(),
        "device": device,
        "versions": {"python": platform.python_version()} | versions,
    }


def _program() -> str:
    """Returns the words of the command line before its arguments.

    They are "dallegan", "python -m dallegan", or "python FILE", in which FILE is a path inside the checkout
    if the program lies there, and the bare name of the file otherwise.
    """
    path = pathlib.Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {path.parent.name}"
    if path.suffix != ".py":  # a script that pip installed
        return path.name
    path = path.resolve()
    return f"python {path.relative_to(CHECKOUT).as_posix() if path.is_relative_to(CHECKOUT) else path.name}"


def _processor() -> str:
    """Returns the processor's name and its widest vector unit.

    The vector unit tells more about speed: two cores of an "AMD EPYC" multiply at 150 or at 450 Gflop/s.
    """
    try:
        with open("/proc/cpuinfo") as file:
            facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in file)}
    except OSError:
        facts = {}
    flags = facts.get("flags", "").split()
    unit = " (AVX-512)" if "avx512f" in flags else " (AVX2)" if "avx2" in flags else ""
    return facts.get("model name", platform.processor()) + unit


def restart_with_huge_pages() -> None:
    """Restarts this program, once, so that glibc's allocator asks for huge pages; does nothing without glibc.

    XLA allocates the scratch memory of a step anew each time. To touch that memory in pages of 4 KiB costs an
    eighth of the time of a step on a CPU (benchmarks/LOG.md). glibc 2.35 or newer reads the setting when a
    process starts, hence the restart. A GLIBC_TUNABLES of the user's own is left alone.
    """
    if platform.libc_ver()[0] != "glibc" or "GLIBC_TUNABLES" in os.environ:
        return
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
