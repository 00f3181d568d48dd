"""Schema of model descriptions: its version, the valid values of fields, and migration of older descriptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparse3dunet import __version__
from sparse3dunet.colors import is_color
from sparse3dunet.data.mistyped import nearly_known
from sparse3dunet.data.slices import check_specification
from sparse3dunet.errors import DataError
from sparse3dunet.io.segments import names_fault
from sparse3dunet.losses.regions import membership
from sparse3dunet.transforms.normalize import is_intensity

SCHEMA_VERSION = 2
"""Version of the schema; it rises with every change of the fields that a program must know to use a model."""
LARGEST = 2**63
"""Bound of all numbers: JSON's have any number of digits."""
DESCRIPTION = "model.json"
CURE = "Copy it again from the training's folder."


class NewerDescriptionError(DataError):
    """Error for a model description that was written by a newer version of sparse3dunet."""


def migrated(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a description in the current schema version.

    Up to 0.10.0 there was none. Since version 1 the padding determines the upsampling (weights are converted when they
    are loaded), and ``in_channels`` is given for any network. Version 2 (0.12.0) added ``regions`` and ``intensity``.
    """
    result = dict(content) if "schema_version" in content else _first_version(content)
    if is_number(result["schema_version"], int) and result["schema_version"] == 1:
        result |= {"schema_version": 2, "regions": None}
    return result


def check_keys(content: Mapping[str, Any], where: str) -> None:
    """Raise DataError if a field seems to be there under a damaged or mistyped key: it would be taken for a note.

    Descriptions of former versions may lack any field; but if such a key is that of the version, they are none.
    """
    known = _WRITTEN if content.get("schema_version") == SCHEMA_VERSION else ("schema_version",)
    for key, meant in nearly_known(content, known).items():
        raise DataError(
            f"{where}: has the key {_short(key)}, which is not known, but no {meant!r}; expected the latter. Correct "
            f"it, or give your own note another name. {CURE}"
        )


def required_fields(content: Mapping[str, Any], least: Sequence[str]) -> Sequence[str]:
    """Return the fields without which a description is damaged, before it is migrated; `least`: of any version."""
    if content.get("schema_version") != SCHEMA_VERSION:
        return least
    return tuple(name for name in _WRITTEN if name not in _NOT_ALWAYS_WRITTEN)


def _first_version(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description without a schema version in version 1."""
    result = {"schema_version": 1, "in_channels": 1, **content}
    network, names, ignored = (result.get(name) for name in ("network", "class_names", "ignore_index"))
    if isinstance(network, Mapping):
        result["network"] = {name: value for name, value in network.items() if name != "upsampling"}
        result["in_channels"] = content.get("in_channels", network.get("in_channels", 1))
    if isinstance(names, list):
        result.setdefault("class_values", list(range(len(names))))
    result.setdefault("unlabeled", ignored if isinstance(ignored, list) else [] if ignored is None else [ignored])
    return result


def check_fields(content: Mapping[str, Any], required: Sequence[str], where: str) -> None:
    """Raise DataError unless each field is valid.

    Args:
        content: fields as read from JSON, and migrated.
        required: names of fields that must be there.
        where: name of the file in messages.
    """
    _check_version(content, where)
    for name, (fits, expected) in _EXPECTED.items():
        if name in content and not fits(content[name]):
            raise DataError(f"{where}: has no valid {name}: {_short(content[name])}; expected {expected}. {CURE}")
        if name not in content and name in required:
            raise DataError(f"{where}: has no {name}; expected {expected}. {CURE}")


def _check_version(content: Mapping[str, Any], where: str) -> None:
    version, writer = content["schema_version"], content.get("sparse3dunet_version")
    if not is_number(version, int) or version < 1:
        found = _short(version)
        raise DataError(f"{where}: has no valid schema_version: {found}; expected 1 to {SCHEMA_VERSION}. {CURE}")
    if version > SCHEMA_VERSION:
        raise NewerDescriptionError(
            f"{where}: was written by sparse3dunet {writer or '(unknown version)'}, whose model descriptions (schema "
            f"version {version}) this one, {__version__}, cannot read. Update sparse3dunet to that version or a later "
            "one."
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def is_number(value: Any, kind: Any = (int, float)) -> bool:
    """Return whether a value from JSON is a finite number, of a bounded size, and not a truth value."""
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < LARGEST  # false for NaN, too


def _are_numbers(value: Any, kind: Any = int) -> bool:
    return isinstance(value, list) and all(is_number(n, kind) for n in value)


def _are_different(value: list[Any]) -> bool:
    return len(set(value)) == len(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_regions(value: Any) -> bool:
    if not isinstance(value, dict) or not all(map(_are_numbers, value.values())):
        return False
    try:
        membership(value)
    except (ValueError, IndexError):
        return False
    return True


def _are_slices(value: Any) -> bool:
    try:
        check_specification(value, DESCRIPTION)
    except DataError:
        return False
    return True


_NAMES = (_are_texts, "a list of names")
_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "class_names": (
        lambda v: _are_texts(v) and len(v) > 1 and not names_fault(v),
        "two or more different names, none blank or of two lines",
    ),
    "class_values": (lambda v: _are_numbers(v) and _are_different(v), "a different whole number for each class"),
    "class_colors": (
        lambda v: _are_texts(v) and all(not color or is_color(color) for color in v),
        "a colour such as #e69f00 for each class, or none",
    ),
    "patch_size": (lambda v: _are_numbers(v) and len(v) == 3 and min(v) > 0, "three whole numbers above 0"),
    "network": (lambda v: v is None or isinstance(v, dict), "the arguments of UNet3D, or null for another network"),
    "in_channels": (lambda v: is_number(v, int) and v > 0, "a whole number above 0"),
    "spacing": (
        lambda v: v is None or (_are_numbers(v, (int, float)) and len(v) == 3 and min(v) > 0),
        "three numbers above 0, in mm, or null",
    ),
    "voxel_size": (
        lambda v: v is None or (_are_numbers(v, (int, float)) and len(v) == 3 and min(v) > 0),
        "three numbers above 0, in mm, or null",
    ),
    "unlabeled": (_are_numbers, "a list of whole numbers"),
    "ignore_index": (
        lambda v: v is None or is_number(v, int) or _are_numbers(v),
        "a whole number, a list of them, or null",
    ),
    "annotated_slices": (lambda v: v is None or _are_slices(v), "a plane, all, slices by plane, or null"),
    "normalize": _NAMES,
    "intensity": (is_intensity, "lower, upper, mean and std, with lower < upper and std above 0, or null"),
    "regions": (lambda v: v is None or _are_regions(v), "class numbers by region, or null"),
    "training": _NAMES,
    "validation": _NAMES,
    "sparse3dunet_version": (lambda v: v is None or isinstance(v, str), "a version such as 1.0.0"),
}
"""By field, a check of the value read from JSON, and what is expected."""
_WRITTEN = (*_EXPECTED, "schema_version")
_NOT_ALWAYS_WRITTEN = ("class_colors", "sparse3dunet_version", "voxel_size")
"""Fields that the first files of the current schema version lack, or that nothing depends on."""
