"""Densification of arrays, with the methods of scikit-learn's estimators."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor

from sparse3dunet.bundle import running
from sparse3dunet.data.label_and_weight import SparseLabel, whole_numbers
from sparse3dunet.densify import inputs
from sparse3dunet.densify.results import read_prob
from sparse3dunet.errors import DataError, find_data_error
from sparse3dunet.io import read_image, write_map
from sparse3dunet.io.volumes import Volume, check_affine, check_same_grid, on_grid_of, whole_labels
from sparse3dunet.propagation import Ensemble
from sparse3dunet.propagation.calibration import decide
from sparse3dunet.transforms.arguments import number


class SparseDensifier:
    """Segment a whole volume from the annotated part of it.

    With ``minutes=0``, in seconds, by propagation alone (:class:`~sparse3dunet.propagation.Ensemble`'s preview); with
    minutes, as ``sparse3dunet densify`` does, which this runs.

    Args:
        minutes: duration; 0 for the preview.
        ignore_index: value, or values, of unlabeled voxels.
        seed: random seed.
        folder: folder for the run's results and its report; None for a temporary one. Only with minutes.

    Attributes:
        classes_: (K,) values of the classes, in the order of the probabilities; the background first.

    Example:
        >>> densifier = Densifier(minutes=0, ignore_index=255).fit(image, label, spacing=(1, 1, 3))  # doctest: +SKIP
        >>> densifier.segmentation()  # doctest: +SKIP
    """

    def __init__(
        self,
        minutes: float = 0.0,
        ignore_index: int | Sequence[int] = 255,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        self.minutes, self.ignore_index, self.seed, self.folder = minutes, ignore_index, seed, folder

    def fit(
        self,
        image: Any,
        label: Any,
        spacing: Sequence[float] | None = None,
        affine: np.ndarray | None = None,
    ) -> SparseDensifier:
        """Learn from a volume and its annotation.

        Args:
            image: (X, Y, Z), or (C, X, Y, Z) with channels; or the path of a scan.
            label: (X, Y, Z) integers: classes, of which the lowest is the background, and `ignore_index` where
                unlabeled; or a path.
            spacing: voxel size in mm; of arrays without an affine; default 1.
            affine: 4x4, voxel to RAS+ world in mm; of arrays; instead of `spacing`. Without either, that of a
                MetaTensor, as MONAI's ``LoadImage`` reads it.

        Raises:
            DataError: when shapes or values do not fit, or two files or MetaTensors their positions in space, or
                nothing is annotated.
        """
        number("minutes", self.minutes, 0)
        scan = _volume(image, spacing, affine, "image")
        annotation = _volume(label, spacing, affine, "label")
        paths = all(isinstance(source, (str, Path)) for source in (image, label))
        if not paths and annotation.data.shape != scan.spatial_shape:
            raise DataError(
                f"label has shape {annotation.data.shape}, image {scan.spatial_shape}; expected the same (X, Y, Z)."
            )
        annotation = on_grid_of(annotation, scan)
        check_same_grid(annotation, scan)
        ignored = list(whole_numbers(self.ignore_index, "ignore_index"))
        self.classes_ = _class_values(annotation, ignored)
        split = SparseLabel(self.classes_.tolist(), ignored)
        kind = np.int64 if annotation.data.dtype.kind in "iub" else np.float64  # in both, large values stay distinct
        numbers, weight = (np.asarray(part[0]) for part in split(np.asarray(annotation.data, kind)[None]))
        self._known, self._numbers = weight > 0, numbers
        self._prob, self._segmentation = (
            self._run(scan, annotation, ignored) if self.minutes else self._preview(scan, weight)
        )
        return self

    def predict_proba(self) -> np.ndarray:
        """Return the probabilities (K, X, Y, Z), float32, in the order of ``classes_``."""
        self._check_fitted()
        return self._prob

    def segmentation(self) -> np.ndarray:
        """Return the segmentation (X, Y, Z), values as in the annotation; annotated voxels keep theirs."""
        self._check_fitted()
        return self._segmentation

    predict = segmentation

    def fit_predict(self, image: Any, label: Any, **arguments: Any) -> np.ndarray:
        """Return the segmentation of a volume from its annotation; see :meth:`fit`."""
        return self.fit(image, label, **arguments).segmentation()

    def _check_fitted(self) -> None:
        if not hasattr(self, "_segmentation"):
            raise DataError("this Densifier was not fitted yet; call fit(image, label) first.")

    def _preview(self, scan: Volume, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        channels = scan.data[None] if scan.data.ndim == 3 else np.moveaxis(scan.data, -1, 0)
        ensemble = Ensemble(len(self.classes_), self.seed)
        ensemble.fit(np.asarray(channels, np.float32), self._numbers.astype(np.int64), weight, scan.spacing)
        prob = ensemble.preview().whole(scan.spatial_shape)
        numbers, _ = decide(prob.reshape(len(prob), -1), ~self._known.ravel())
        numbers = numbers.reshape(scan.spatial_shape)
        numbers[self._known] = self._numbers[self._known]
        return prob, self.classes_[numbers]

    def _run(self, scan: Volume, annotation: Volume, ignored: list[int]) -> tuple[np.ndarray, np.ndarray]:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(self.folder or temporary).expanduser()
            paths = [folder / "work" / "inputs" / f"{name}.nii.gz" for name in ("scan", "label")]
            for path, volume in zip(paths, (scan, annotation)):
                write_map(path, volume.data, scan)
            dataset = inputs.prepare(paths, folder / "work" / "inputs", ignore_index=ignored)
            settings = {"dataset_dir": str(dataset), "output_dir": str(folder), "minutes": float(self.minutes)}
            settings |= {"ignore_index": ignored, "seed": self.seed, "probabilities": True}
            try:
                running.run_quietly("densify", settings)
            except RuntimeError as error:  # MONAI's, about an expression in which a DataError was raised
                told = find_data_error(error)
                if told is None:
                    raise
                raise DataError(str(told)) from error
            prob = read_prob(folder, 0, scan.spatial_shape)
            return prob, np.asarray(read_image(folder / "scan_seg.nii.gz").data).astype(int)


def _class_values(annotation: Volume, ignored: Sequence[int]) -> np.ndarray:
    """Return the values of the classes; raise DataError if they are no whole numbers, or fewer than two."""
    found = np.unique(whole_labels(annotation.data))
    odd = found[~(np.isfinite(found) & (found == np.rint(found)))]
    if odd.size:
        cure = (
            "If NaN means unlabeled, replace it by a value that is no class, and pass this as ignore_index."
            if np.isnan(odd).any()
            else "Resample label maps by nearest neighbours, and check that it is not an image."
        )
        raise DataError(f"{annotation.path} has the value {odd[-1]:g}; labels must be whole numbers. {cure}")
    classes = found[~np.isin(found, ignored)].astype(int)
    if len(classes) < 2:
        raise DataError(
            f"label has the classes {classes.tolist()} besides {list(ignored)} for unlabeled voxels; expected at least "
            "two, background included."
        )
    return classes


def _volume(source: Any, spacing: Sequence[float] | None, affine: np.ndarray | None, name: str) -> Volume:
    """Return a volume, read from a path or made from an array, channels last as in files.

    Only a MetaTensor's own affine is the array's alone, and may differ from the other's; one without has the identity.
    """
    if isinstance(source, (str, Path)):
        return read_image(source)
    array = np.asarray(source)
    if array.ndim not in ((3, 4) if name == "image" else (3,)):
        raise DataError(f"{name} has shape {array.shape}; expected (X, Y, Z){' or (C, X, Y, Z)' * (name == 'image')}.")
    sizes = np.asarray((1, 1, 1) if spacing is None else spacing, float)
    if sizes.shape != (3,) or not (sizes > 0).all():
        raise DataError(f"spacing is {spacing!r}; expected three sizes in mm.")
    matrix = np.diag([*sizes, 1.0]) if affine is None else np.asarray(affine, float)
    own = np.asarray(source.affine, float) if isinstance(source, MetaTensor) else matrix
    is_own = affine is None and spacing is None and not np.array_equal(own, np.eye(4))
    matrix = own if is_own else matrix
    if matrix.shape != (4, 4):
        raise DataError(f"the affine of the {name} has shape {matrix.shape}; expected (4, 4), voxel to world in mm.")
    check_affine(name, matrix)
    data = np.moveaxis(array, 0, -1) if array.ndim == 4 else array
    return Volume(name, data, matrix, has_orientation=is_own, has_voxel_size=is_own)
