"""Regions declared in a data set: overlapping targets made of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparse3dunet.errors import DataError
from sparse3dunet.losses.regions import Regions, written_classes

EXAMPLE = '{"whole tumor": ["edema", "core"], "tumor core": ["core"]}'
ADVICE = (
    "Add a region for a class that has none of its own, or change their order: later ones are written over earlier."
)


def declared_regions(
    declared: Any, class_names: Sequence[str], class_values: Sequence[int], source: str
) -> dict[str, tuple[int, ...]]:
    """Return the class numbers of each declared region, in the order in which they are written; empty for None.

    Args:
        declared: names or values of the classes of each region, by its name; None for no regions.
        class_names: names by class number, background first; empty if the data set declares no classes.
        class_values: values by class number.
        source: file of the data set, for messages.

    Raises:
        DataError: when this is no such dictionary, or a class is unknown, the background or in no region, or a region
            does not have exactly one class that is in no later one.
    """
    if declared is None:
        return {}
    where = f'{source}: "regions"'
    if not isinstance(declared, Mapping) or not declared:
        raise DataError(f"{where} must be like {EXAMPLE}; found {declared!r}. Correct it.")
    if not class_names:
        raise DataError(f'{where} needs declared classes; expected "labels" in dataset.json. Declare them.')
    regions = {}
    for name, classes in declared.items():
        if name.lower() in ("background", "ignore"):
            raise DataError(f"{where} has a region named {name!r}; expected another name. Rename it.")
        listed = classes if isinstance(classes, list) else [classes]
        regions[name] = tuple(
            sorted({_class_number(entry, name, class_names, class_values, where) for entry in listed})
        )
    missing = [name for number, name in enumerate(class_names) if number and number not in _all_of(regions)]
    if missing:
        raise DataError(f"{where}: the class {missing[0]} is in no region, and would never be predicted. {ADVICE}")
    try:
        written_classes(regions)
    except ValueError as error:
        raise DataError(
            f"{where}: {error}; expected one, the class that the region is written as, as in {EXAMPLE}. {ADVICE}"
        ) from error
    return regions


def output_count(regions: Regions | None, num_classes: int) -> int:
    """Return the number of a network's outputs: one for each region, or, without regions, for each class."""
    return len(regions) if regions else num_classes


def scored_names(regions: Regions | None, class_names: Sequence[str]) -> list[str]:
    """Return the names of what is scored, background first: the regions, or, without regions, the classes."""
    return [class_names[0], *regions] if regions else list(class_names)


def describe(regions: Regions, class_names: Sequence[str]) -> list[str]:
    """Return lines such as "region whole tumor: edema, core; written as edema"."""
    return [
        f"region {name}: {', '.join(class_names[number] for number in classes)}; written as {class_names[written]}"
        for (name, classes), written in zip(regions.items(), written_classes(regions))
    ]


def _all_of(regions: Regions) -> set[int]:
    return {number for classes in regions.values() for number in classes}


def _class_number(entry: Any, region: str, names: Sequence[str], values: Sequence[int], where: str) -> int:
    among: Sequence[Any] = names if isinstance(entry, str) else values
    number = 0 if isinstance(entry, (bool, float)) or entry not in among else among.index(entry)
    if number == 0:
        known = ", ".join(f"{name} ({value})" for name, value in list(zip(names, values))[1:])
        raise DataError(
            f"{where}: {region} contains {entry!r}; expected classes other than the background: {known}, by name or "
            "value. Correct it."
        )
    return number
