"""Scans of several kinds with dense labels, of which some slices count as annotated, to benchmark densify."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms.utils import scale_affine

from sparse3dunet.data.slices import Slices, crossed, plane_names, slices_mask
from sparse3dunet.datasets.mni152 import load_template
from sparse3dunet.transforms.simulate import choose_slices

UNLABELED = 255
SCAN, ANNOTATION = "scan.nii.gz", "annotation.nii.gz"
Loaded = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Intensities, dense label and affine."""


class AbsentError(Exception):
    """Error for missing data, or a missing package that reads them."""


@dataclass(frozen=True)
class Scan:
    """Scan with a dense label, annotated on some slices.

    Attributes:
        name: of the data and of the way that it is annotated.
        image: (X, Y, Z) gray values.
        dense: (X, Y, Z) uint8, 0 is background; for scoring alone.
        affine: voxel to world.
        slices: the annotated ones.
    """

    name: str
    image: np.ndarray
    dense: np.ndarray
    affine: np.ndarray
    slices: Slices

    @cached_property
    def annotated(self) -> np.ndarray:
        """(X, Y, Z) boolean."""
        return slices_mask(self.dense.shape, self.slices)

    @cached_property
    def annotation(self) -> np.ndarray:
        """The dense label on annotated slices, :data:`UNLABELED` elsewhere."""
        return np.where(self.annotated, self.dense, UNLABELED).astype(np.uint8)

    @cached_property
    def gray(self) -> np.ndarray:
        """Intensities scaled from their 0.5 and 99.5 percentiles to 0 ... 1."""
        low, high = np.percentile(self.image, [0.5, 99.5])
        return np.clip((self.image.astype(np.float32) - low) / (high - low), 0, 1).astype(np.float32)

    @property
    def spacing(self) -> np.ndarray:
        """Size of a voxel in mm."""
        return nib.affines.voxel_sizes(self.affine)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the scan and its annotation as NIfTI, and return the files."""
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / SCAN, folder / ANNOTATION
        for file, volume in zip(files, (self.image, self.annotation)):
            nib.save(nib.Nifti1Image(volume, self.affine), file)
        return files

    def dice(self, segmentation: np.ndarray) -> dict[int, float]:
        """Return the Dice on unlabeled voxels of each foreground class that they show."""
        found, true = segmentation[~self.annotated], self.dense[~self.annotated]
        return {
            int(c): float(2 * ((found == c) & (true == c)).sum() / ((found == c).sum() + (true == c).sum()))
            for c in np.unique(true[true > 0])
        }

    def mean_dice(self, segmentation: np.ndarray) -> float:
        """Mean of :meth:`dice`."""
        return float(np.mean(list(self.dice(segmentation).values())))

    def describe(self) -> str:
        """Return its name, size and annotated share."""
        return f"{self.name} ({'x'.join(map(str, self.dense.shape))}, {self.annotated.mean():.1%} annotated)"


@dataclass(frozen=True)
class Kind:
    """Scans that are loaded and annotated in the same way.

    Attributes:
        cases: from the shared folder, what to load by name; raises :class:`AbsentError` where nothing is there.
        plane: that the stack's slices lie in.
        step: from one slice of the stack to the next.
        count: slices on each of three axes.
    """

    cases: Callable[[Path], dict[str, Callable[[], Loaded]]]
    plane: str
    step: int
    count: int

    def annotate(self, case: str, loaded: Loaded) -> Iterator[Scan]:
        """A stack of slices, and slices on three axes."""
        dense, affine = loaded[1:]
        yield Scan(f"{case}-{self.plane}{self.step}", *loaded, stack(dense, affine, self.plane, self.step))
        yield Scan(f"{case}-3ax{self.count}", *loaded, choose_slices(dense > 0, self.count, "equidistant"))

    def names(self, case: str) -> tuple[str, str]:
        """Names of the scans that :meth:`annotate` makes."""
        return f"{case}-{self.plane}{self.step}", f"{case}-3ax{self.count}"


def stack(dense: np.ndarray, affine: np.ndarray, plane: str, step: int) -> Slices:
    """Return every `step`-th slice in a plane, including the first one with foreground."""
    axis = plane_names(affine).index(plane)
    first = int(np.flatnonzero(crossed(dense > 0, axis))[0])
    return [list(range(first % step, dense.shape[a], step)) if a == axis else [] for a in range(3)]


def brain() -> Loaded:
    """The built-in volume."""
    image, dense = load_template()
    return image.get_fdata().astype(np.float32), dense, image.affine


def read_pair(image_file: Path, label_file: Path) -> Loaded:
    """Of NIfTI files."""
    image, label = (nib.load(file) for file in (image_file, label_file))
    return np.asarray(image.dataobj), np.rint(np.asarray(label.dataobj)).astype(np.uint8), image.affine


def _required(file: Path) -> Path:
    if not file.exists():
        raise AbsentError(f"there is no {file}")
    return file


def _hippocampus(shared: Path) -> dict[str, Callable[[], Loaded]]:
    labels = sorted(_required(shared / "hippocampus/labelsTr").glob("*.nii.gz"))[:151:30]
    images = shared / "hippocampus/imagesTr"
    return {f.name.removesuffix(".nii.gz"): lambda f=f: read_pair(images / f.name, f) for f in labels}


def _ct(shared: Path) -> dict[str, Callable[[], Loaded]]:
    files = [_required(shared / "ct3mm" / name) for name in ("scan.nii.gz", "organs.nii.gz")]
    return {"ct3mm": lambda: read_pair(*files)}


def _thick(shared: Path) -> dict[str, Callable[[], Loaded]]:
    """The built-in volume with voxels of 0.5 x 0.5 x 7.5 mm, as of a stack of thick MRI slices."""
    return {"thick": lambda: resampled(brain(), (0.5, 0.5, 7.5))}


def _wide(shared: Path) -> dict[str, Callable[[], Loaded]]:
    """The CT as 20 slices of 512 x 512 voxels."""
    loaded = _ct(shared)["ct3mm"]

    def load() -> Loaded:
        image, dense, affine = loaded()
        size = nib.affines.voxel_sizes(affine) * image.shape / (512, 512, 20)
        return resampled((image, dense, affine), size)

    return {"wide": load}


def _slab(shared: Path) -> dict[str, Callable[[], Loaded]]:
    """20 slices of 2 mm from the CT, of 512 x 512 voxels and with smooth borders and some noise."""
    loaded = _ct(shared)["ct3mm"]

    def load() -> Loaded:
        image, dense, affine = loaded()
        shape = (512, 512, round(image.shape[2] * nib.affines.voxel_sizes(affine)[2] / 2))
        values, best, classes = interpolated(image, shape), np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
        for number in np.unique(dense):
            share = interpolated(dense == number, shape)
            classes[share > best] = number
            best = np.maximum(best, share)
        values += np.random.default_rng(0).normal(0, 12, shape)
        shown = (classes > 0).sum((0, 1))
        first = int(np.argmax(np.convolve(shown, np.ones(20), "valid")))
        chosen = (slice(None), slice(None), slice(first, first + 20))
        return values[chosen], classes[chosen], affine @ scale_affine(image.shape, shape)

    return {"slab": load}


def interpolated(volume: np.ndarray, shape: Sequence[int], mode: str = "trilinear") -> np.ndarray:
    """Resample over the same field of view, to float32."""
    given = torch.from_numpy(volume.astype(np.float32))[None, None]
    return torch.nn.functional.interpolate(given, tuple(shape), mode=mode)[0, 0].numpy()


def resampled(loaded: Loaded, spacing: Sequence[float]) -> Loaded:
    """Resample over the same field of view: intensities of thick slices are means, labels those in their middle."""
    image, dense, affine = loaded
    shape = [max(round(n * s / t), 1) for n, s, t in zip(image.shape, nib.affines.voxel_sizes(affine), spacing)]
    values, classes = interpolated(image, shape, "area"), interpolated(dense, shape, "nearest-exact")
    return values, classes.astype(np.uint8), affine @ scale_affine(image.shape, shape)


def _nuclei(shared: Path) -> dict[str, Callable[[], Loaded]]:
    files = [_required(shared / "nuclei" / name) for name in ("scan.tif", "nuclei.tif")]
    try:
        import tifffile
    except ImportError as error:
        raise AbsentError(f"{error} (extra `bench`)") from error

    def load() -> Loaded:
        scan, nuclei = (tifffile.imread(file).T for file in files)  # ZYX in the files
        return scan, (nuclei > 0).astype(np.uint8), np.eye(4)

    return {"nuclei": load}


def _tube(shared: Path) -> dict[str, Callable[[], Loaded]]:
    script = _required(shared / "repro/oblique_tube.py")

    def load() -> Loaded:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, script, folder], check=True)
            return read_pair(Path(folder, "scan.nii.gz"), Path(folder, "dense.nii.gz"))

    return {"tube": load}


KINDS = {
    "mni152": Kind(lambda shared: {"mni152": brain}, "axial", 10, 1),
    "hippocampus": Kind(_hippocampus, "coronal", 5, 1),
    "ct3mm": Kind(_ct, "axial", 5, 2),
    "nuclei": Kind(_nuclei, "axial", 5, 2),
    "tube": Kind(_tube, "axial", 12, 2),
    "thick": Kind(_thick, "axial", 3, 1),
    "wide": Kind(_wide, "axial", 4, 2),
    "slab": Kind(_slab, "axial", 4, 2),
}


def kind_of(name: str) -> str:
    """Return the kind of a scan and its annotation by its name: ``hippocampus, coronal5``."""
    case, annotation = name.rsplit("-", 1)
    return f"{case.split('_')[0]}, {annotation}"


def load_all(shared: Path, wanted: Sequence[str]) -> Iterator[Scan]:
    """Return the scans whose names begin with one of those requested; print which kinds are missing.

    Args:
        shared: the folder of data that are no part of the repository.
        wanted: beginnings of names, as ``tube`` or ``hippocampus_001-3ax1``; none for all.
    """
    begins = tuple(wanted) or tuple(KINDS)
    for name, kind in KINDS.items():
        if not any(begin.startswith(name) for begin in begins):
            continue
        try:
            cases = kind.cases(shared)
        except AbsentError as error:
            print(f"{name} is skipped: {error}", flush=True)
            continue
        for case, load in cases.items():
            if any(scan.startswith(begins) for scan in kind.names(case)):
                yield from (scan for scan in kind.annotate(case, load()) if scan.name.startswith(begins))


def demo() -> Scan:
    """Return the built-in volume with three slices per axis."""
    loaded = brain()
    return Scan("mni152-3ax3", *loaded, choose_slices(loaded[1] > 0, 3, "equidistant"))
