"""Memory available to this process."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = "/proc/self/cgroup"
GROUP_ROOTS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
"""Root folder of control groups (Linux), and the file of a group's limit, by controller: version 2, and 1."""

MALLOC_TRIM, MALLOC_MMAP = -1, -3
"""Numbers of glibc's parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h)."""
KEPT = 2**31 - 1
"""Bytes of freed memory that the process keeps: the most that mallopt takes."""
LARGE = 2**30, 2**25
"""Bytes from which memory still goes back to the system at once; the second for older glibc, which takes no more."""
DEFAULT = 2**17
"""Bytes of both by default."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context in which glibc keeps freed memory for the next arrays; the system would clear each page of it anew.

    Where that is slow, as in virtual machines, large arrays of short life cost more than what is done with them. With
    other C libraries, nothing is done.
    """
    try:
        libc = ctypes.CDLL(None)
        set_option, trim = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        yield
        return
    set_option(MALLOC_TRIM, KEPT)
    any(set_option(MALLOC_MMAP, size) for size in LARGE)
    try:
        yield
    finally:
        set_option(MALLOC_TRIM, DEFAULT)
        set_option(MALLOC_MMAP, DEFAULT)
        trim(0)


def machine_memory() -> int:
    """Return the memory of the machine, or the container's limit, in bytes; 0 if unknown."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    return min([whole, *_limits()])


def _limits() -> list[int]:
    """Return the memory limits of this process's control groups, in bytes; empty if there are none."""
    try:
        lines = Path(GROUPS).read_text().splitlines()
    except OSError:
        return []
    files = set()
    for controller, (root, name) in GROUP_ROOTS.items():
        for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
            if controller in controllers.split(","):
                folder = Path(root, group.strip("/"))
                # Limits of parent groups apply too; in a container, the process's own group may appear as the root
                files |= {parent / name for parent in (folder, *folder.parents) if parent.is_relative_to(root)}
    found = []
    for file in files:
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return [limit for limit in found if limit > 0]
