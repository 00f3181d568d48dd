"""Splits of cases into training and validation."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sparse3dunet.data.cutting import has_parts
from sparse3dunet.data.datalist import Case
from sparse3dunet.data.layouts import read_json
from sparse3dunet.data.names import case_name, may_be_named, volume_name
from sparse3dunet.errors import DataError
from sparse3dunet.keys import ANNOTATED_CLASSES

MOST_PARTS = 8
"""Number of parts of larger volumes that are validated: each takes seconds on a CPU."""


def split_cases(
    cases: Sequence[Case],
    val_fraction: float = 0.2,
    seed: int = 0,
    split_file: str | Path | None = None,
    validation: Sequence[str] = (),
) -> tuple[list[Case], list[Case]]:
    """Split cases into training and validation.

    A single case is used for both: the network learns from its annotated slices, and predicts the rest of it. Of parts
    of volumes larger than memory, at most MOST_PARTS are for validation. At random, whole volumes are held
    out if there are several, and of partial labels none that leaves a class that was looked for in no training case.

    Args:
        cases: cases of a :class:`~sparse3dunet.data.datalist.DataSet`.
        val_fraction: share of the cases for validation, at least one; 0 puts *all* cases into both parts, to densify
            the annotated volumes.
        seed: seed of the random split.
        split_file: JSON file ``{"train": [names], "val": [names]}`` with a fixed split; the name of a volume larger
            than memory means all its parts.
        validation: names of the cases that the data set itself sets apart for validation, used if there is no split
            file and `val_fraction` is not 0.

    Raises:
        DataError: when the split file is unreadable, names an unknown case or leaves a part empty, or the fraction is
            not in [0, 1).
    """
    if split_file is not None:
        return _split_by_file(cases, Path(str(split_file)).expanduser())
    is_number = isinstance(val_fraction, (int, float)) and not isinstance(val_fraction, bool)
    if not is_number or not 0 <= val_fraction < 1:
        raise DataError(f"val_fraction must be a number of at least 0 and below 1, got {val_fraction!r:.80}.")
    if len(cases) <= 1 or val_fraction == 0:
        return list(cases), _few(cases)
    if validation:
        chosen = [case_name(case) in set(validation) for case in cases]
        return [c for c, val in zip(cases, chosen) if not val], _few([c for c, val in zip(cases, chosen) if val])
    volumes: dict[str, list[Case]] = {}
    for case in cases:
        volumes.setdefault(volume_name(case), []).append(case)
    if has_parts(cases) and len(volumes) > 1:  # parts of a volume resemble each other
        training, held_out = _divided(list(volumes.values()), val_fraction, seed)
        return training, _few(held_out)
    return _divided([[case] for case in cases], val_fraction, seed, MOST_PARTS if has_parts(cases) else len(cases))


def _divided(
    groups: Sequence[list[Case]], fraction: float, seed: int, most: int | None = None
) -> tuple[list[Case], list[Case]]:
    """Return the cases for training, and those for validation, whole groups at random.

    Training keeps each class that was looked for in some case only (partial labels), unless nothing could be held out.
    """
    order = list(groups)
    random.Random(seed).shuffle(order)
    count = min(max(round(fraction * len(order)), 1), len(order) - 1, most or len(order))
    sought = [Counter(value for case in group for value in case.get(ANNOTATED_CLASSES, ())) for group in order]
    left = sum(sought, Counter())
    held_out: set[int] = set()
    for number, own in enumerate(sought):
        if len(held_out) < count and all(left[value] > own[value] for value in own):
            held_out.add(number)
            left -= own
    held_out = held_out or set(range(count))
    training = [case for number, group in enumerate(order) if number not in held_out for case in group]
    return training, [case for number in sorted(held_out) for case in order[number]]


def _few(cases: Sequence[Case]) -> list[Case]:
    """Return the cases for validation, of parts at most MOST_PARTS, evenly."""
    parts = [case for case in cases if has_parts([case])]
    others = [case for case in cases if not has_parts([case])]
    return [*others, *parts[:: max(math.ceil(len(parts) / MOST_PARTS), 1)]]


def _split_by_file(cases: Sequence[Case], path: Path) -> tuple[list[Case], list[Case]]:
    split = read_json(path)
    if not isinstance(split, dict):
        raise DataError(f'{path}: expected {{"train": [names], "val": [names]}}, found {type(split).__name__}.')
    by_name = {case_name(case): [case] for case in cases}
    for case in cases:
        if has_parts([case]):
            by_name.setdefault(volume_name(case), []).append(case)
    parts = []
    for part in ("train", "val"):
        names = split.get(part)
        if not isinstance(names, list) or not names:
            raise DataError(f'{path}: expected a list of case names under "{part}", found {names!r}.')
        twice = next((str(name) for name in names if list(map(str, names)).count(str(name)) > 1), None)
        if twice is not None:
            raise DataError(f'{path}: {twice} is listed twice under "{part}"; expected each case once. Remove one.')
        unknown = [str(name) for name in names if str(name) not in by_name]
        if unknown:
            raise DataError(f'{path}: cases under "{part}" are not in the data set: {", ".join(unknown[:5])}.')
        chosen = [case for name in names for case in by_name[str(name)]]
        parts.append([case for number, case in enumerate(chosen) if case not in chosen[:number]])  # a volume and a part
    both = [case_name(case) for case in parts[0] if case in parts[1]]
    if both:
        raise DataError(
            f"{path}: cases in both parts: {', '.join(both[:5])}. Validation on training cases does not show how good "
            "predictions of new volumes are; to densify all volumes, pass --val_fraction 0 instead of a split file."
        )
    return parts[0], _few(parts[1])


def cases_to_score(cases: Sequence[Case], training: Sequence[str], validation: Sequence[str]) -> list[Case]:
    """Return the cases to evaluate a model on, given the names of its training and validation cases.

    These are its validation cases, if the data set has them all; otherwise, for another data set, all cases. The cases
    are printed, and whether the model was trained on them, as far as it can be told: which folder is in a case's name
    depends on the cases that it is listed with.
    """
    held_out = [case for case in cases if case_name(case) in set(validation)]
    chosen = held_out if held_out and len(held_out) == len(set(validation)) else list(cases)
    names = [case_name(case) for case in chosen]
    unseen = set(training) - {case_name(case) for case in cases}
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    if set(names) & set(training):
        note = "all or some of which the model was trained on (scores on annotated voxels do not apply to others)"
    elif not training or any(may_be_named(case, name) for case in chosen for name in unseen):
        note = "names cannot tell whether the model was trained on them"
    else:
        note = "which the model was not trained on"
    print(f"Scoring {len(names)} volume(s), {note}: {shown}")
    return chosen


def share_cases(cases: Sequence[Case], rank: int, ranks: int) -> list[Case]:
    """Return the cases that one of several processes validates: every `ranks`-th; all if there are fewer than ranks.

    In the latter case all processes compute the same scores, as none may be without a volume.
    """
    return list(cases[rank::ranks] if len(cases) >= ranks else cases)
