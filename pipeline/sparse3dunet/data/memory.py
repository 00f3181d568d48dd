"""Memory available to this process."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = "/proc/self/cgroup"
GROUP_ROOTS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
"""Root folder of control groups (Linux), and the file of a group's limit, by controller: version 2, and 1."""


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
