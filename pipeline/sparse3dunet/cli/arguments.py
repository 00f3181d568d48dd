"""Parsing of command-line arguments into values."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from sparse3dunet.errors import DataError, UnknownSettingError

MOST_DIGITS = 9
"""Digits of a number of folds or parts: Python refuses to read numbers of thousands."""
LARGEST_WINDOW = 65536
"""Voxels along an axis, more than any volume that fits in memory has."""


@contextlib.contextmanager
def as_typed(context: typer.Context, words: Sequence[str]) -> Iterator[None]:
    """Have an unknown setting be told as it was typed, and the command's own options be proposed first.

    Args:
        context: the command's.
        words: what follows its own options.

    Raises:
        UnknownSettingError: in place of the one that is raised within.
    """
    try:
        yield
    except UnknownSettingError as error:
        typed = [word.partition("=")[0] for word in words]
        name = next((word for word in typed if _as_setting(word) == error.name), None)
        if name is None:  # of a config file, or a part of a setting
            raise
        own = {
            _as_setting(option): option
            for parameter in context.command.params
            for option in (*parameter.opts, *parameter.secondary_opts)
            if option.startswith("--") and not getattr(parameter, "hidden", False)
        }
        near = [own[option] for option in difflib.get_close_matches(error.name, own, n=3)]
        near += [option for option in error.near if option not in own]
        raise UnknownSettingError(name, near[:3], error.cure) from error


def _as_setting(option: str) -> str:
    return option[:2] + option[2:].replace("-", "_")


def spacing(text: str) -> Any:
    """Return a spacing as in the config: a word, None, or three sizes."""
    if text in ("auto", "median"):
        return text
    if text in ("null", "none", "None"):
        return None
    try:
        sizes = [float(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3:
        raise DataError(f"--spacing is {text!r}; expected auto, null, median, or three sizes in mm such as 1,1,1.")
    return sizes


def folds(text: str) -> Any:
    """Return the number of folds, or auto."""
    if text != "auto" and not _is_count(text):
        raise DataError(f"--folds is {text!r}; expected auto, or a whole number of at least 0.")
    return text if text == "auto" else int(text)


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) <= MOST_DIGITS


def names(text: str | None) -> list[str]:
    """Split names at commas."""
    return [name.strip() for name in text.split(",")] if text else []


def class_names(text: str | None) -> list[str] | str | None:
    """Return names split at commas, or the path of ITK-SNAP's label descriptions, ``labels.txt``."""
    return text if text is not None and text.lower().endswith(".txt") else names(text) or None


def volumes(text: str | None) -> float | dict[str, float]:
    """Return millilitres from "0.5", or by class from "liver=5,tumor=0.1"."""
    try:
        if text is None or "=" not in text:
            return float(text or 0)
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        by_name = {name.strip(): float(ml) for name, ml in pairs}
        if len(by_name) < len(pairs):
            raise ValueError("a class is there twice")
        return by_name
    except ValueError as error:
        raise DataError(
            f"--min-ml is {text!r}; expected ml such as 0.5, or by class, each once, such as liver=5,tumor=0.1."
        ) from error


def window(text: str | None) -> list[int] | None:
    """Return the three sizes of a window; None for the model's."""
    sizes = numbers(text, "--roi-size")
    if sizes is None:
        return None
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or min(sizes) < 1 or max(sizes) > LARGEST_WINDOW:
        raise DataError(
            f"--roi-size is {text!r}; expected one or three numbers of voxels such as 96 or 96,96,64, each up to "
            f"{LARGEST_WINDOW}."
        )
    return sizes


def part(text: str | None) -> tuple[int, int] | None:
    """Return the number of a part, from 1, and that of all, from "3/16"; None for all of it."""
    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (_is_count(number) and _is_count(count) and 1 <= int(number) <= int(count)):
        raise DataError(f"--part is {text!r}; expected a number of all, from 1, such as 3/16.")
    return int(number), int(count)


def axes(text: str | None) -> list[int]:
    """Return axes in RAS order from "lr,ap" or "all"."""
    if text == "all":
        return [0, 1, 2]
    axes = {"lr": 0, "ap": 1, "si": 2}
    return [choice(name, axes, "--mirror") for name in names(text)]


def choice(text: str, choices: dict[str, Any], option: str) -> Any:
    """Return the value that a word stands for."""
    if text not in choices:
        raise DataError(f"{option} is {text!r}; expected {', '.join(choices)}.")
    return choices[text]


def device(text: str | None) -> Any:
    """Return a torch device; None for the best one."""
    import torch

    if text is None:
        return None
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).cpu()  # meta has no values
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--device is {text!r}, which cannot be used ({reason}). Pass cpu, cuda or cuda:0.") from error
    return device


def numbers(text: str | None, option: str) -> list[int] | None:
    """Return whole numbers from "4,255", with or without brackets."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.strip("[] ").split(",")]
    except ValueError as error:
        raise DataError(
            f"{option} must be one or several whole numbers; found {text!r}. Write it as 255 or 4,255."
        ) from error


def slices(text: str | None) -> Any:
    """Return the specification of annotated slices, from JSON or a word."""
    if text is None or not text.strip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            f"--annotated-slices {text!r} is not valid JSON ({error}); expected axial, coronal, sagittal, all, or "
            "JSON. Write it as '{\"axial\": [3, 20]}'."
        ) from error
