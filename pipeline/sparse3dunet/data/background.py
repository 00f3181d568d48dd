"""The background's value on disk, which is 0 in most data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparse3dunet.data.datalist import DataSet
from sparse3dunet.errors import DataError


def lowest_is_background(source: str, values: Sequence[int]) -> str:
    """Return a warning that the lowest of undeclared class values is taken for the background."""
    return (
        f"warning: {source}: no annotated voxel is 0, so the lowest value, {values[0]}, is taken for the background; "
        f"the other classes are {', '.join(map(str, values[1:]))}. If {values[0]} is a structure, the background was "
        "never annotated: annotate it too, with a value of its own, and pass that as --background VALUE. Otherwise "
        f"pass --background {values[0]}, and this is not asked again."
    )


def with_background(data_set: DataSet, value: int) -> DataSet:
    """Return the data set with the class of this value first, as the background.

    Raises:
        DataError: when the value is no class, or the one of a region.
    """
    values = list(data_set.class_values)
    if value not in values:
        unlabeled = " It means unlabeled: pass another --ignore-index." if value in data_set.ignore_index else ""
        raise DataError(
            f"{data_set.labels_place}: the background is to be {value}, which is no class; expected one of "
            f"{', '.join(map(str, values))}.{unlabeled}"
        )
    region = next((name for name, numbers in data_set.regions.items() if values.index(value) in numbers), None)
    if region is not None:
        raise DataError(
            f"{data_set.source}: the background is to be {value}, which is a class of the region {region}; expected a "
            "value that no region contains. Pass another --background, or correct the regions."
        )
    order = [values.index(value), *(number for number, other in enumerate(values) if other != value)]
    names = [data_set.class_names[number] for number in order]
    regions = {name: tuple(order.index(number) for number in numbers) for name, numbers in data_set.regions.items()}
    return replace(data_set, class_names=names, class_values=[values[number] for number in order], regions=regions)
