"""How much memory there is, for this process."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = "/proc/self/cgroup"
GROUP_ROOTS = {"": ("/sys/fs/cgroup", "memory.max"), "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")}
"""Of control groups (Linux) by controller: version 2, and 1; the folder of all, and the file of a group's limit."""


def machine_memory() -> int:
    """The memory in bytes that there is: the machine's, or the container's limit; 0 where the system does not tell."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0
    return min([whole, *_limits()])


def _limits() -> list[int]:
    """The memory that control groups allow this process, in bytes; none where they don't."""
    try:
        lines = Path(GROUPS).read_text().splitlines()
    except OSError:
        return []
    files = set()
    for controller, (root, name) in GROUP_ROOTS.items():
        for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
            if controller in controllers.split(","):
                folder = Path(root, group.strip("/"))
                # A group has the limits of all around it; in a container, its own may be seen as the root
                files |= {parent / name for parent in (folder, *folder.parents) if parent.is_relative_to(root)}
    found = []
    for file in files:
        try:
            found.append(int(file.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return [limit for limit in found if limit > 0]
