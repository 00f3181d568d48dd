"""Mutations of good files of every kind that is read, each read again in a process that may end.

``python -m tests.fuzzing FOLDER SEED FIRST LAST`` reads the cases FIRST ... LAST - 1 and prints for each, as JSON, its
number before and its outcome after: "read", "refused", or what is wrong. :func:`run` starts such processes, one after
another where one ends, and returns all outcomes.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import SimpleITK as sitk

from tests.conftest import ROOT, bundle_environment

LONGEST, MOST_MEMORY = 60, 6 * 2**30
"""Seconds and bytes of a case."""
LONGEST_START = 300
"""Seconds until a process has imported what it needs, on a busy machine."""
SHAPE = (12, 10, 8)
WORDS = (
    "-1|0|1|99|nan|inf|-inf|1e400|2147483648|4294967296|true|null|[]|{}|[[[]]]|''|../../etc/passwd|/dev/zero|$1/0|"
    "@x|%x|%s%n|_target_|\\ud800|\t|A" + "A" * 300
).split("|")
COMPRESSED = (".nii.gz", "gz.nrrd", "z.mha")
"""Files whose voxels have a checksum: what is read of them is right."""


def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.int16)


def make_images(folder: Path) -> None:
    """Write a volume in each format."""
    from sparse3dunet.io import write_segmentation
    from sparse3dunet.io.volumes import Volume
    from tests.io.microscopy import affine
    from tests.io.test_formats_dicom import write_slice

    folder.mkdir(parents=True)
    like = Volume("like", array(), np.diag([1.0, 1, 2, 1]))
    flat = Volume("like", array(), affine((1.0, 1.0, 2.0)), has_orientation=False)
    for name in ("a.nii", "a.nii.gz", "a.seg.nrrd"):
        write_segmentation(folder / name, array(), like, {0: "background", 1: "one", 2: "two", 3: "three"})
    for name in ("a.tif", "a.ome.tif", "a.h5", "a.ome.zarr"):
        write_segmentation(folder / name, array(), flat, {})
    image = sitk.GetImageFromArray(array().T)
    for name, packed in (("raw.nrrd", False), ("gz.nrrd", True), ("raw.mha", False), ("z.mha", True), ("b.nhdr", True)):
        sitk.WriteImage(image, str(folder / name), packed)
    nib.save(nib.Nifti2Image(array().astype(np.float32), np.eye(4)), folder / "second.nii")
    with h5py.File(folder / "chunks.h5", "w") as file:
        file.create_dataset("raw", data=array(), compression="gzip", fletcher32=True)
    for k in range(SHAPE[2]):
        write_slice(folder / f"series/{k}.dcm", array()[:, :, k], np.array([0.0, 0, 2 * k]), np.eye(3))


def make_others(folder: Path) -> None:
    """Write a model, a config, a data list, a plan, a state, and a record."""
    import torch

    from sparse3dunet.densify.state import State, StateFile
    from sparse3dunet.inference.inputs import ImageCase
    from sparse3dunet.inference.records import CaseRecord
    from sparse3dunet.networks import UNet3D
    from tests.conftest import make_dataset

    network = UNet3D(1, 3, channels=(2, 4), norm="instance", padding="same")
    (folder / "models").mkdir(parents=True)
    torch.save(network.state_dict(), folder / "models/model.pt")
    content = {"class_names": ["background", "a", "b"], "class_values": [0, 1, 2], "patch_size": [16, 16, 16]}
    (folder / "models/model.json").write_text(json.dumps({**content, "network": network.config}))
    make_dataset(folder / "data", 2)
    shutil.copy(ROOT / "bundle/configs/train.yaml", folder / "train.yaml")
    (folder / "labels.txt").write_text('# x\n    0  0 0 0  0 0 0  "Clear Label"\n    1  255 0 0  1 1 1  "liver"\n')
    StateFile(folder / "dense").write(State("0" * 64, held_out=[{"a": [[1], [], [2]]}], seconds={"final": 1.0}))
    record = CaseRecord(folder / "out", ImageCase("a", (str(folder / "labels.txt"),)), {})
    drafts = record.start(["a_seg.nii.gz"])
    (drafts / "a_seg.nii.gz").write_bytes(b"x" * 99)
    record.finish(["a_seg.nii.gz"], seconds=1.0, ml={"a": 1.0}, mean_confidence=None, segmentation="a_seg.nii.gz")


def kinds(folder: Path) -> dict[str, tuple[Path, Path, Callable[[], Any]]]:
    """Return for each kind of file: the file or folder of which a copy is damaged, what is read, and how."""
    from sparse3dunet.bundle.config_files import read_config
    from sparse3dunet.data.datalist import read_data_set
    from sparse3dunet.densify.state import StateFile
    from sparse3dunet.inference.inputs import ImageCase
    from sparse3dunet.inference.records import CaseRecord
    from sparse3dunet.io import read_image
    from sparse3dunet.io.itk_snap import read_label_descriptions
    from sparse3dunet.models.loading import load_model

    work = folder / "work"
    images = sorted(path for path in (folder / "images").iterdir() if path.suffix != ".raw" and ".raw" not in path.name)
    found: dict[str, tuple[Path, Path, Callable[[], Any]]] = {}
    for image in images:
        copy = work / image.name
        found[image.name] = (image, copy, lambda copy=copy: read_image(copy).data)
    case = ImageCase("a", (str(folder / "others/labels.txt"),))
    others = {
        "models/model.pt": lambda: load_model(work / "models"),
        "models/model.json": lambda: load_model(work / "models"),
        "train.yaml": lambda: read_config(work / "train.yaml"),
        "data/dataset.json": lambda: read_data_set(work / "data"),
        "labels.txt": lambda: read_label_descriptions(work / "labels.txt"),
        "dense/work/state.json": lambda: StateFile(work / "dense").read(),
        "out/records/a.json": lambda: CaseRecord(work / "out", case, {}).is_done(["a_seg.nii.gz"]),
    }
    for name, read in others.items():
        found[name] = (folder / "others" / name, work / name, read)
    return found


def damage(content: bytes, rng: random.Random, other: bytes) -> bytes:
    """Return bytes with one to three changes: flips, cuts, insertions, swaps, and in text also words and lines."""
    is_text = b"\0" not in content[:2000] and len(content) < 200_000
    for _ in range(rng.choice((1, 1, 2, 3))):
        what, at = rng.randrange(9 if is_text else 7), rng.randrange(max(len(content), 1))
        if rng.random() < 0.4:
            at = min(at, rng.randrange(400))  # where headers are
        end = at + rng.randrange(1, 64)
        if what <= 1 and content:
            content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
        elif what == 2:
            content = content[:at]
        elif what == 3:
            content = content[:at] + rng.choice((b"\xff", b"\0", b"\x7f")) * (end - at) + content[end:]
        elif what == 4:
            content = content[:at] + content[end:]
        elif what == 5:
            content = content[:at] + other[:64] + content[at:]
        elif what == 6:
            content = content[:at] + content[end : 2 * end - at] + content[at:end] + content[2 * end - at :]
        else:
            text = content.decode("latin-1")
            words = list(re.finditer(r"[\w.+-]+|\"[^\"]*\"", text))
            if what == 7 and words:
                word = rng.choice(words)
                text = text[: word.start()] + rng.choice(WORDS) + text[word.end() :]
            else:
                lines = text.split("\n")
                rng.shuffle(lines) if rng.random() < 0.3 else lines.pop(rng.randrange(len(lines)))
                text = "\n".join(lines)
            content = text.encode("latin-1", errors="replace")
    return content


def prepare(source: Path, copy: Path, folder: Path) -> list[Path]:
    """Copy what belongs to a file; return the file, or those in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    top = copy.relative_to(folder).parts[0]
    root = source.parents[len(copy.relative_to(folder).parts) - 1]
    folder.mkdir()
    whole = root / top
    shutil.copytree(whole, folder / top) if whole.is_dir() else shutil.copy(whole, folder / top)
    if copy.suffix == ".nhdr":
        shutil.copy(source.with_suffix(".raw.gz"), folder)
    return sorted(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else [copy]


def judge(name: str, copy: Path, read: Callable[[], Any]) -> str:
    """Return the outcome of reading one damaged file."""
    from sparse3dunet.errors import DataError

    try:
        found = read()
    except DataError as error:
        text = str(error)
        if len(text.split("\n")) > 1 or len(text) > 3000:
            return f"WRONG: not one line: {text[:300]!r}"
        names = {copy.name, copy.parent.name, copy.parents[1].name} | {path.name for path in copy.rglob("*")}
        return "refused" if any(part in text for part in names) else f"WRONG: names no file: {text[:300]!r}"
    except BaseException as error:
        return f"WRONG: {type(error).__name__}: {str(error)[:200]!r}"
    if isinstance(found, np.ndarray):
        on_disk = sum(path.stat().st_size for path in ([copy] if copy.is_file() else copy.rglob("*")))
        if name.endswith(COMPRESSED) and found.size == array().size and not np.array_equal(found, array()):
            return "WRONG: other voxels, in spite of a checksum"
        if name.startswith(("raw", "second")) and found.size > on_disk:
            return f"WRONG: {found.size} voxels of {on_disk} bytes"
    return "read"


def work(folder: Path, seed: int, first: int, last: int) -> None:
    """Read some cases, in a process of its own."""
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    every = kinds(folder)
    names = list(every)
    contents = [source.read_bytes() for source, _, _ in every.values() if source.is_file()]
    for number in range(first, last):
        rng = random.Random(f"{seed}/{number}")
        name = names[number % len(names)]
        source, copy, read = every[name]
        target = rng.choice(prepare(source, copy, folder / "work"))
        if number < len(names):
            read()  # while it is whole
        target.write_bytes(damage(target.read_bytes(), rng, rng.choice(contents)))
        print(json.dumps([number, name]), flush=True)
        print(json.dumps([number, name, judge(name, copy, read)]), flush=True)


def run(folder: Path, seed: int, count: int) -> list[tuple[int, str, str]]:
    """Return number, kind and outcome of each case; a process that ends or hangs is the outcome of its last case."""
    make_images(folder / "images")
    make_others(folder / "others")
    outcomes: list[tuple[int, str, str]] = []
    while len(outcomes) < count:
        first = len(outcomes)
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzzing", str(folder), str(seed)]
        process = subprocess.Popen(
            [*command, str(first), str(count)],
            cwd=ROOT,
            env=bundle_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        seen = [time.monotonic() + LONGEST_START - LONGEST]
        threading.Thread(target=_watch, args=(process, seen), daemon=True).start()
        last: list[Any] = [first, "?"]
        for line in process.stdout or ():
            if not line.startswith("["):
                continue  # what readers print
            seen[0], last = time.monotonic(), json.loads(line)
            if len(last) == 3:
                outcomes.append((last[0], last[1], last[2]))
        if process.wait() or len(outcomes) < count:
            error = (process.stderr.read() if process.stderr else "")[-300:]
            assert len(last) == 2, f"the process ended between two cases: {error}"
            outcomes.append((last[0], last[1], f"WRONG: the process ended with {process.returncode}: {error!r}"))
    return outcomes


def _watch(process: subprocess.Popen[str], seen: list[float]) -> None:
    while process.poll() is None:
        if time.monotonic() - seen[0] > LONGEST:
            process.kill()
        time.sleep(1)


def table(outcomes: list[tuple[int, str, str]]) -> str:
    """Return a table of the outcomes by kind."""
    counts = Counter((kind, outcome.split(":")[0]) for _, kind, outcome in outcomes)
    rows = [f"{'kind':26}{'read':>8}{'refused':>9}{'wrong':>7}"]
    for kind in sorted({kind for _, kind, _ in outcomes}):
        rows.append(f"{kind:26}{counts[kind, 'read']:8}{counts[kind, 'refused']:9}{counts[kind, 'WRONG']:7}")
    return "\n".join(rows)


if __name__ == "__main__":
    work(Path(sys.argv[1]), *map(int, sys.argv[2:]))
