"""What is typed on the command line, as values."""

from __future__ import annotations

import json
from typing import Any

from sparse3dunet.errors import DataError


def spacing(text: str) -> Any:
    """As the config has it: a word, None, or three sizes."""
    if text in ("auto", "median"):
        return text
    if text in ("null", "none", "None"):
        return None
    try:
        sizes = [float(part) for part in text.strip("[] ").split(",")]
    except ValueError:
        sizes = []
    if len(sizes) != 3:
        raise DataError(f"--spacing is {text!r}; expected auto, null, median, or three sizes in mm, as 1,1,1.")
    return sizes


def folds(text: str) -> Any:
    """The number of parts, or auto."""
    if text != "auto" and not text.isdecimal():
        raise DataError(f"--folds is {text!r}; expected auto, or a number from 0 on.")
    return text if text == "auto" else int(text)


def names(text: str | None) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",")] if text else []


def volumes(text: str | None) -> float | dict[str, float]:
    """Millilitres from "0.5", or by class from "liver=5,tumor=0.1"."""
    try:
        if text is None or "=" not in text:
            return float(text or 0)
        pairs = (part.rsplit("=", 1) for part in text.split(","))
        return {name.strip(): float(ml) for name, ml in pairs}
    except ValueError as error:
        raise DataError(f"--min-ml is {text!r}; expected ml as in 0.5, or by class as in liver=5,tumor=0.1.") from error


def window(text: str | None) -> list[int] | None:
    """The three sizes of a window; None: the model's."""
    found = numbers(text, "--roi-size")
    if found is None:
        return None
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3 or min(found) < 1:
        raise DataError(f"--roi-size is {text!r}; expected one or three numbers of voxels, as 96 or 96,96,64.")
    return found


def axes(text: str | None) -> list[int]:
    """Axes in RAS order from "lr,ap" or "all"."""
    if text == "all":
        return [0, 1, 2]
    axes = {"lr": 0, "ap": 1, "si": 2}
    return [choice(name, axes, "--mirror") for name in names(text)]


def choice(text: str, choices: dict[str, Any], option: str) -> Any:
    """What a word stands for."""
    if text not in choices:
        raise DataError(f"{option} is {text!r}; expected {', '.join(choices)}.")
    return choices[text]


def device(text: str | None) -> Any:
    """A device of torch's; None: the best one."""
    import torch

    if text is None:
        return None
    try:
        device = torch.device(text)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--device is {text!r}, which cannot be used ({reason}). Pass cpu, cuda or cuda:0.") from error
    return device


def numbers(text: str | None, option: str) -> list[int] | None:
    """Whole numbers from "4,255", with or without brackets."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.strip("[] ").split(",")]
    except ValueError as error:
        raise DataError(
            f"{option} must be a whole number or several; found {text!r}. Write it as 255 or 4,255."
        ) from error


def slices(text: str | None) -> Any:
    """The specification of annotated slices: JSON, or a word."""
    if text is None or not text.strip().startswith(("{", "[")):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(
            f"--annotated-slices {text!r} is no JSON ({error}); expected a word (axial, coronal, sagittal, all) or "
            "JSON. Write it as '{\"axial\": [3, 20]}'."
        ) from error
