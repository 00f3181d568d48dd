"""Annotation of a volume larger than memory, read box by box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse3dunet.data.large_conventions import LargeConvention
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import Volume, whole_labels


@dataclass(frozen=True)
class LargeAnnotation:
    """Label map, weight and convention, on the grid of the annotated volume.

    Attributes:
        label: the opened label map.
        weight: the opened weight, unlabeled where it is 0; None for none.
        convention: which voxels are unlabeled.
        key: plain values that change with the annotation, for records of results that depend on it.
    """

    label: Volume
    weight: Volume | None
    convention: LargeConvention
    key: Any = None

    def read(self, box: Sequence[slice]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the values in a box and the mask of those annotated, (X, Y, Z) each; None if none is."""
        values = whole_labels(self.label.data[tuple(box)])
        if self.convention.is_unlabeled(values):
            return None
        annotated = self.convention.annotated(values, box)
        if self.weight is not None:
            annotated &= self.weight.data[tuple(box)] > 0
        return (values, annotated) if annotated.any() else None

    def classes_in(self, box: Sequence[slice], class_values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the mask (X, Y, Z) of the annotated voxels in a box and their classes (N,); None if there are none.

        Args:
            box: the voxels of the volume.
            class_values: the values of all classes.

        Raises:
            DataError: when a voxel is annotated as none of these.
        """
        found = self.read(box)
        if found is None:
            return None
        values, annotated = found
        classes = values[annotated]
        unknown = np.setdiff1d(classes, class_values)
        if len(unknown):
            listed = ", ".join(f"{value:g}" for value in unknown[:10])
            known = ", ".join(map(str, class_values))
            raise DataError(f"{self.label.path}: value(s) {listed} are none of the model's classes: {known}.")
        return annotated, classes.astype(class_values.dtype)
