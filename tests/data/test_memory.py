"""The memory that there is: the machine's, or what a container or a cluster's job may take."""

import platform
import subprocess
import sys

import pytest

from sparse3dunet.data import memory
from sparse3dunet.data.memory import machine_memory


@pytest.mark.parametrize(("limit", "expected"), [("1000000\n", 1_000_000), ("max\n", None), ("9" * 30, None)])
@pytest.mark.parametrize(
    ("group", "file"),
    [
        ("0::/job/step\n", "memory.max"),
        ("0::/job/step\n", "job/memory.max"),
        ("0::/job/step\n", "job/step/memory.max"),
        ("1:name=systemd:/\n4:cpu,memory:/job\n", "job/memory.limit_in_bytes"),
    ],
)
def test_memory_of_a_container(tmp_path, monkeypatch, limit, expected, group, file):
    """Or of a cluster's job: of its group, or one around it."""
    whole = machine_memory()
    (tmp_path / "cgroup").write_text(group)
    (tmp_path / "root" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "root" / file).write_text(limit)
    roots = {name: (str(tmp_path / "root"), of) for name, (_, of) in memory.GROUP_ROOTS.items()}
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "GROUP_ROOTS", roots)
    assert machine_memory() == expected if expected else machine_memory() >= whole


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_freed_memory_is_used_again():
    """Pages of an array that was freed are not asked from the system, and cleared by it, once more; later they are."""
    script = """
import resource, torch
from sparse3dunet.data.memory import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
with freed_memory_kept():
    faults()
    kept = faults()
print(first, kept, faults())
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, within, after = map(int, result.stdout.split())
    assert within < before / 10 / 10  # of an array's pages
    assert after > before / 10 / 2  # of one array at least: what was kept went back to the system
