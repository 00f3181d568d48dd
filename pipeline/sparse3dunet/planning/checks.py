"""Schema of plans: its version, and the valid values of fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sparse3dunet import __version__
from sparse3dunet.errors import DataError
from sparse3dunet.models.description_checks import is_number
from sparse3dunet.transforms.normalize import is_intensity

SCHEMA_VERSION = 1
MOST_BATCH, LONGEST, MOST_STRIDE = 1024, 4096, 16
MOST_VOXELS = 2**30
"""Bounds of a batch's patches, a patch's axis, a stride, and an iteration's voxels, far beyond any machine's memory."""
CURE = "Make one: sparse3dunet plan DATA -o FILE"


def check_plan(content: Any, where: str) -> None:
    """Raise DataError unless the content of a JSON file is a plan; `where` names the file."""
    if not isinstance(content, dict):
        raise DataError(f"{where}: not a plan: expected a JSON object, found {content!r:.40}. {CURE}")
    version: Any = content.get("schema_version")
    if is_number(version, int) and version > SCHEMA_VERSION:
        raise DataError(
            f"{where}: was written by sparse3dunet {content.get('sparse3dunet_version')}, whose plans (schema version "
            f"{version}) this one, {__version__}, cannot read. Update sparse3dunet to that version or a later one."
        )
    for name, (fits, expected) in _EXPECTED.items():
        if name not in content:
            raise DataError(f"{where}: not a plan: it has no {name}; expected {expected}. {CURE}")
        if not fits(content[name]):
            raise DataError(f"{where}: has no valid {name}: {content[name]!r:.80}; expected {expected}. {CURE}")
    _check_iteration(content, f"{where}: ")


def check_choices(choices: Mapping[str, Any]) -> None:
    """Raise DataError, naming the setting, unless each value, as JSON has it, is one that a plan may have."""
    for name, value in choices.items():
        fits, expected = _EXPECTED[name]
        if not fits(value):
            raise DataError(f"{name} is {value!r:.80}; expected {expected}.")
    _check_iteration(choices, "")


def _check_iteration(choices: Mapping[str, Any], where: str) -> None:
    """Raise DataError if the patches of an iteration have more voxels than any machine could process."""
    voxels = math.prod(choices.get("patch_size", ())) * choices.get("batch_size", 1)
    if voxels > MOST_VOXELS:
        raise DataError(
            f"{where}{choices.get('batch_size', 1)} patches of {choices['patch_size']} are {voxels:.3g} voxels in an "
            f"iteration; expected at most {MOST_VOXELS:.3g}. Choose a smaller patch_size or batch_size."
        )


def check_bound(size: Any, voxels: Any) -> None:
    """Raise DataError unless the upper bound of the patch size is three whole numbers, or None; as the voxels' does."""
    check_patch_voxels(voxels)
    if size is not None and not _are_whole(list(size) if isinstance(size, tuple) else size):
        raise DataError(
            f"largest_patch_size is {size!r}; expected three whole numbers above 0, such as --largest_patch_size "
            '"[64,64,64]".'
        )


def check_patch_voxels(voxels: Any) -> None:
    """Raise DataError unless the number of voxels that a patch may have is one."""
    if not is_number(voxels) or voxels < 1:
        raise DataError(f"patch_voxels must be a number of at least 1, such as --patch_voxels 262144; got {voxels!r}.")


def resolutions(channels: Any) -> int:
    """Return the number of a network's resolutions; raise DataError unless its channels are a list as in a plan."""
    check_choices({"channels": list(channels) if isinstance(channels, tuple) else channels})
    return len(channels)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _are_whole(value: Any) -> bool:
    return _are_numbers(value) and all(isinstance(n, int) and n > 0 for n in value)


def _are_kernels(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(_are_whole(k) and set(k) <= {1, 3} for k in value)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "schema_version": (lambda v: is_number(v, int) and v == SCHEMA_VERSION, str(SCHEMA_VERSION)),
    "spacing": (lambda v: v is None or (_are_numbers(v) and min(v) > 0), "three numbers above 0, in mm, or null"),
    "patch_size": (
        lambda v: _are_whole(v) and max(v) <= LONGEST,
        f"three whole numbers above 0, at most {LONGEST}",
    ),
    "channels": (
        lambda v: isinstance(v, list) and len(v) != 1 and all(is_number(n, int) and n > 0 for n in v),
        "a whole number above 0 for each of two or more resolutions",
    ),
    "batch_size": (lambda v: is_number(v, int) and 0 < v <= MOST_BATCH, f"a whole number from 1 to {MOST_BATCH}"),
    "strides": (
        lambda v: isinstance(v, list) and len(v) > 0 and all(_are_whole(s) and max(s) <= MOST_STRIDE for s in v),
        f"three whole numbers from 1 to {MOST_STRIDE} for each downsampling",
    ),
    "kernel_sizes": (_are_kernels, "three numbers, 1 or 3, for each resolution"),
    "intensity": (is_intensity, "lower, upper, mean and std, with lower < upper and std above 0, or null"),
    "class_balance": (lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "flip_prob": (lambda v: _are_numbers(v) and min(v) >= 0 and max(v) <= 1, "three numbers from 0 to 1"),
    "reasons": (lambda v: isinstance(v, dict), "an object"),
    "fingerprint": (
        lambda v: isinstance(v, dict) and _are_names(v.get("class_names")),
        "an object, and class_names in it a list of names",
    ),
    "slice_axis": (lambda v: v is None or (is_number(v, int) and v in (0, 1, 2)), "0, 1, 2 or null"),
}
"""By field, a check of the value read from JSON, and what is expected."""
