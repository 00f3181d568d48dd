"""Reading the data set of a bundle's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from monai.data import CacheDataset

from sparse3dunet.data import checks, set_conventions
from sparse3dunet.data.datalist import DataSet, declared_data_set, read_data_set
from sparse3dunet.datasets.mni152 import ensure_default


def read(
    dataset_dir: str | None,
    *,
    declared: Mapping[str, Any] | None = None,
    known: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | str | None = None,
    infer_unlabeled: bool = False,
    background: int | None = None,
    **options: Any,
) -> DataSet:
    """Read a data set, and take what it does not declare from its files; the built-in one is prepared if absent.

    With `infer_unlabeled`, as for densify, regions are ignored.

    Args:
        dataset_dir: the data set's folder or JSON datalist; None for one without cases, whose classes are in
            `declared`, as for MONAI Label, which lists the cases itself.
        declared: see :func:`~sparse3dunet.data.datalist.declared_data_set`.
        known: classes for a data set that declares none, see :func:`~sparse3dunet.data.checks.complete`.
        class_names: names instead of the declared ones, only with `infer_unlabeled`; see
            :func:`~sparse3dunet.data.set_conventions.complete`.
        infer_unlabeled: whether to infer what is unlabeled in any way, if the data set does not declare it; otherwise
            only from values that mark it clearly, see :func:`~sparse3dunet.data.set_conventions.with_marks`.
        background: value of the background, see :func:`~sparse3dunet.data.checks.complete`.
        options: see :func:`~sparse3dunet.data.datalist.read_data_set`.

    Raises:
        DataError: when no data are given, or they cannot be read or completed.
    """
    if dataset_dir is None:
        return checks.complete(declared_data_set(declared), known)
    data_set = read_data_set(ensure_default(dataset_dir), **options)
    if infer_unlabeled:
        if data_set.regions:
            print(f"{data_set.source}: the regions are ignored; each class is segmented by itself.")
        return set_conventions.complete(replace(data_set, regions={}), class_names, known, background)
    return checks.complete(set_conventions.with_marks(data_set, known, background), known, background)


class ValidationDataset(CacheDataset):
    """MONAI's ``CacheDataset`` of the validation cases or, if there are none, of others.

    MONAI Label divides the labelled cases itself; if there is only one, none is left for validation. A training is then
    validated on the annotation that it learns from, as for a single volume.

    Args:
        data: validation cases.
        otherwise: cases if `data` is empty.
        arguments: arguments of ``CacheDataset``.
    """

    def __init__(self, data: Sequence[Any], *, otherwise: Sequence[Any] = (), **arguments: Any) -> None:
        super().__init__(data=data or otherwise, **arguments)
