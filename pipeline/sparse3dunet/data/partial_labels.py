"""Partial labels: cases in which only some of the classes were looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_CLASSES


def class_values_of(declared: Any, class_names: Sequence[str], class_values: Sequence[int], where: str) -> list[int]:
    """Return the values of the declared classes and of the background, by class number.

    Args:
        declared: names or values of the classes that were looked for; the background may be among them.
        class_names: names by class number, background first; empty if the data set declares no classes.
        class_values: values by class number.
        where: name of the case or the data set, for messages.

    Raises:
        DataError: when it is no list, or an entry is no class, or none is a class besides the background.
    """
    listed = declared if isinstance(declared, list) else [declared]
    if not class_names:
        raise DataError(
            f'{where}: annotated_classes is {declared!r}, but the classes are not declared; expected "labels" in '
            'dataset.json, as in {"0": "background", "1": "liver"}. Declare them.'
        )
    known = ", ".join(f"{name} ({value})" for name, value in list(zip(class_names, class_values))[1:])
    numbers = set()
    for entry in listed:
        among: Sequence[Any] = class_names if isinstance(entry, str) else class_values
        if isinstance(entry, (bool, float)) or entry not in among:
            raise DataError(
                f"{where}: annotated_classes contains {entry!r}, which is no class; expected some of {known}, by name "
                "or value. Correct it."
            )
        numbers.add(among.index(entry))
    if not numbers - {0}:
        raise DataError(
            f"{where}: annotated_classes is {declared!r}; expected at least one class besides the background: {known}. "
            "Correct it, or remove the case from the data set."
        )
    return [class_values[number] for number in sorted(numbers | {0})]


def with_annotated_classes(
    cases: Sequence[dict[str, Any]], default: Any, class_names: Sequence[str], class_values: Sequence[int], source: str
) -> list[dict[str, Any]]:
    """Return the cases with the values of the classes that were looked for; unchanged if all were in every case.

    If classes were not looked for in some case, all cases get the entry, so that they can be in one batch.

    Args:
        cases: cases, of which each may have ``annotated_classes`` as declared.
        default: classes that were looked for in cases that declare none; None for all.
        class_names: see :func:`class_values_of`.
        class_values: see :func:`class_values_of`.
        source: file of the data set, for messages.

    Raises:
        DataError: as :func:`class_values_of`.
    """
    found = []
    for number, case in enumerate(cases):
        declared, where = case.get(ANNOTATED_CLASSES), f"training case {number} in {source}"
        if declared is None:
            declared, where = default, source
        every = list(class_values)
        found.append(every if declared is None else class_values_of(declared, class_names, class_values, where))
    bare = [{key: case[key] for key in case if key != ANNOTATED_CLASSES} for case in cases]
    if all(values == list(class_values) for values in found):
        return bare
    return [{**case, ANNOTATED_CLASSES: values} for case, values in zip(bare, found)]


def looked_for(
    label: torch.Tensor,
    weight: torch.Tensor,
    values: Sequence[int],
    class_values: Sequence[int],
    source: str,
    class_names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Return for each class whether it was looked for, (K,) bool.

    Args:
        label: (1, X, Y, Z) class numbers.
        weight: (1, X, Y, Z), 0 where unlabeled.
        values: values of the classes that were looked for.
        class_values: values of all classes, by class number.
        source: file of the label map, for messages.
        class_names: names by class number, for messages; None if unknown.

    Raises:
        DataError: when a value is no class, or an annotated voxel shows a class that was not looked for.
    """
    listed = torch.as_tensor(values).tolist()
    wrong = [value for value in listed if value not in class_values]
    if wrong:
        raise DataError(
            f"{source}: annotated_classes contains {wrong[0]}, which is no class; expected values among "
            f"{', '.join(map(str, class_values))}. Correct it."
        )
    mask = [number == 0 or value in listed for number, value in enumerate(class_values)]
    counts = np.bincount(np.asarray(label)[np.asarray(weight) > 0], minlength=len(mask))
    shown = [number for number, count in enumerate(counts) if count and not mask[number]]
    if shown:
        number = shown[0]
        name = "a class" if class_names is None else class_names[number]
        raise DataError(
            f"{source}: {counts[number]} voxel(s) have the value {class_values[number]} of {name} that was not looked "
            f"for, as annotated_classes lists only {', '.join(map(str, listed))}. Add it there, if all of it was "
            "annotated on the annotated voxels; otherwise mark these voxels as unlabeled."
        )
    return torch.tensor(mask)


def never_looked_for(
    cases: Sequence[Mapping[str, Any]], class_names: Sequence[str], class_values: Sequence[int], source: str
) -> list[str]:
    """Return what is wrong for each class that was looked for in none of the cases; it could only be confused.

    Args:
        cases: cases with the values of the classes that were looked for, see :func:`with_annotated_classes`.
        class_names: see :func:`class_values_of`.
        class_values: see :func:`class_values_of`.
        source: file of the data set, for messages.
    """
    found = {value for case in cases for value in case.get(ANNOTATED_CLASSES, class_values)}
    return [
        f"{source}: {name} (value {value}) is in annotated_classes of no case, so that all background might be {name}; "
        "expected every class in at least one. Add it where it was looked for, or remove it from the classes."
        for name, value in zip(class_names, class_values)
        if cases and value not in found
    ]


def describe(per_case: Sequence[Sequence[str]]) -> list[str]:
    """Return lines such as "3 of 10 cases: only liver was looked for".

    Args:
        per_case: names of the classes that were looked for in each case; empty for all classes.
    """
    kinds = dict.fromkeys(tuple(names) for names in per_case if names)
    return [
        f"{sum(tuple(names) == kind for names in per_case)} of {len(per_case)} cases: only {', '.join(kind)} "
        f"{'was' if len(kind) == 1 else 'were'} looked for"
        for kind in kinds
    ]
