"""What a process needs from the machine under it."""

import os
import platform
import sys


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
