"""TorchScript files that are the same, byte for byte, wherever and whenever they are made of the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from sparse3dunet.errors import DataError
from sparse3dunet.models.loading import load_model

_LEFT_OUT = (".debug_pkl", "/version", "/byteorder", "/serialization_id")
"""Ends of records: where in which file the code came from, and what the writer writes itself."""


def write_script(model_file: Path, target: Path, extra_files: Mapping[str, bytes]) -> None:
    """Write a model as TorchScript, with files in it, under which names ``torch.jit.load`` finds them.

    TorchScript names types by what else the process has scripted, and orders constants by its hash seed: a process of
    its own, with a fixed seed, makes it repeatable.

    Args:
        model_file: ``model.pt``, with its description beside it.
        target: ``model.ts``; readers of the files in it expect that the archive is named as the file.
        extra_files: content by name.

    Raises:
        DataError: when the network cannot be written as TorchScript.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / target.name
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __name__, str(model_file.absolute()), str(raw)],
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            cwd=folder,
            capture_output=True,
            encoding="utf-8",
        )
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(f"{model_file}: cannot be written as TorchScript ({reason}).")
        _copy_records(raw, target, extra_files)


def _copy_records(source: Path, target: Path, extra_files: Mapping[str, bytes]) -> None:
    """Copy a TorchScript archive, less what tells of the machine, and with `extra_files` added."""
    reader = torch._C.PyTorchFileReader(str(source))
    writer = torch._C.PyTorchFileWriter(str(target))
    for name, content in sorted(extra_files.items()):
        writer.write_record(f"extra/{name}", content, len(content))
    for name in reader.get_all_records():
        if not f"/{name}".endswith(_LEFT_OUT):
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def _script(model_file: Path) -> torch.jit.ScriptModule:
    return torch.jit.script(load_model(model_file).network)


if __name__ == "__main__":
    _script(Path(sys.argv[1])).save(sys.argv[2])
