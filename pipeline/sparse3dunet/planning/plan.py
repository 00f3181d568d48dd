"""Plan of a training from the fingerprint of its data: every choice with its reason, as readable JSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import ensure_tuple_rep
from torch import nn

from sparse3dunet import __version__
from sparse3dunet.data.cutting import has_parts
from sparse3dunet.data.reports import DataReport
from sparse3dunet.errors import DataError
from sparse3dunet.io.json_files import parse_json
from sparse3dunet.io.payload import check_no_pipe
from sparse3dunet.io.writing import write_text
from sparse3dunet.models.description import ModelDescription, form_network
from sparse3dunet.networks import UNet3D
from sparse3dunet.planning.checks import CURE, SCHEMA_VERSION, check_bound, check_choices, check_plan, resolutions
from sparse3dunet.planning.fingerprint import CT, Fingerprint, fingerprint
from sparse3dunet.planning.geometry import coarsened, patch_lengths, steps, whole_lengths
from sparse3dunet.planning.sampling import class_balance
from sparse3dunet.transforms.normalize import scale_text

AUTO = "auto"
THICK = 3.0
"""Ratio of the voxels' lengths above which slices count as thick, and are deformed each in its plane."""
LONG = 30.0
"""Minutes from which a training sees the volumes as they are, however large."""
COVERED = 0.25
"""Share of a typical volume that a patch covers in shorter trainings."""
OUTSIDE = 0.1
"""Share of the annotated foreground outside of a model's scale above which a warning is given."""
FLIP = 0.5
"""Probability of a left-right flip, where no classes differ by side."""
Triples = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Choices for a training; sizes by axis: left-right, posterior-anterior, inferior-superior.

    Attributes:
        spacing: voxel size in mm to resample to; None for volumes as they are.
        patch_size: size of patches and windows in voxels.
        batch_size: patches in an iteration.
        channels: channels of the network by resolution; empty for a network of another kind than UNet3D.
        strides: of as many downsamplings as a network may have.
        kernel_sizes: of as many resolutions as a network may have.
        intensity: normalisation of images, see :class:`~sparse3dunet.transforms.NormalizeImage`; None: each image's
            z-score.
        class_balance: see :class:`~sparse3dunet.transforms.RandPatchCenter`.
        flip_prob: probability of a flip along each axis.
        slice_axis: axis across thick slices, which are deformed each in its plane; None if voxels are nearly cubes.
        reasons: by name of a choice, why it was made.
        fingerprint: what the choices depend on.
        schema_version: version of these fields.
        sparse3dunet_version: version of sparse3dunet that wrote the file.
    """

    spacing: tuple[float, ...] | None
    patch_size: tuple[int, ...]
    batch_size: int
    channels: tuple[int, ...]
    strides: Triples
    kernel_sizes: Triples
    intensity: Mapping[str, float] | None
    class_balance: float
    flip_prob: tuple[float, ...]
    slice_axis: int | None
    reasons: Mapping[str, str] = field(default_factory=dict, compare=False)
    fingerprint: Mapping[str, Any] = field(default_factory=dict, compare=False)
    schema_version: int = SCHEMA_VERSION
    sparse3dunet_version: str | None = field(default=__version__, compare=False)

    def strides_for(self, channels: Sequence[int]) -> list[list[int]]:
        """Return the strides of a network with these channels by resolution."""
        return _first(self.strides, resolutions(channels) - 1)

    def kernel_sizes_for(self, channels: Sequence[int]) -> list[list[int]]:
        """Return the kernel sizes of a network with these channels by resolution."""
        return _first(self.kernel_sizes, resolutions(channels))

    def patch_size_for(self, network: nn.Module) -> list[int]:
        """Return the patch size, rounded up to what a network can process (multiples of 8 if it does not say so)."""
        multiples = getattr(network, "size_multiple", (8, 8, 8))
        return [multiple * -(-n // multiple) for n, multiple in zip(self.patch_size, multiples)]

    def to_json(self) -> str:
        """Return the text of a plan's file."""
        text = json.dumps(asdict(self), indent=1)
        return re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"

    def lines(self) -> list[tuple[str, str, str]]:
        """Return name, value and reason of each choice, for people."""
        strides = self.strides_for(self.channels)
        kernels = self.kernel_sizes_for(self.channels)
        shown = {
            "voxel size": "unchanged" if self.spacing is None else _by_axis(self.spacing, ".3g") + " mm",
            "patches": f"{self.batch_size} of {_by_axis(self.patch_size, 'd')} voxels in an iteration",
            "network": f"{'-'.join(map(str, self.channels))} channels, strides {_listed(strides)}"
            if self.channels
            else "not a UNet3D",
            "kernels": _listed(kernels),
            "intensities": "z-score of each image" if self.intensity is None else scale_text(self.intensity),
            "class balance": f"{self.class_balance:g}",
            "flips": "left-right" if any(self.flip_prob) else "none",
            "deformation": "in all directions" if self.slice_axis is None else "within slices only",
        }
        shown = shown if self.channels else {name: text for name, text in shown.items() if name != "kernels"}
        return [(name, text, self.reasons.get(name, "as in the plan's file")) for name, text in shown.items()]


def make_plan(
    report: DataReport,
    spacing: Sequence[float] | None,
    *,
    plan_file: str | Path | None = None,
    patch_voxels: float = 64**3,
    largest_patch_size: Sequence[int] | None = None,
    like: ModelDescription | None = None,
    channels: Sequence[int] = (16, 32, 64, 128),
    batch_size: int = 2,
    batch_voxels: float | None = None,
    requested_spacing: Any = AUTO,
) -> Plan:
    """Return the plan for a data set, or the one in a file.

    Args:
        report: report on the data set, without errors.
        spacing: voxel size in mm to resample to; None for volumes as they are.
        plan_file: file of a plan, which is then returned with this `spacing`.
        patch_voxels: number of voxels that a patch may have.
        largest_patch_size: upper bound of the patch size by axis, instead of `patch_voxels`; None for none.
        like: a model that is to be trained further: strides, kernels and normalisation are then as this model's.
        channels: channels of the network by resolution.
        batch_size: patches in an iteration, at most.
        batch_voxels: voxels in an iteration, at most: fewer patches, if they are large. None for no limit.
        requested_spacing: the setting from which `spacing` follows, for its reason.

    Raises:
        DataError: when the file is not a plan, or does not fit the data set.
    """
    check_bound(largest_patch_size, patch_voxels)
    found, model = fingerprint(report), _as(like)
    if plan_file is not None:
        taken = _check_fits(read_plan(plan_file), found, plan_file)
        return replace(taken, spacing=_tuple(spacing), channels=taken.channels or tuple(channels), **model)
    voxel = spacing or found.spacing
    shape = found.shape if spacing is None else [length / size for length, size in zip(found.extent, spacing)]
    voxels = patch_voxels if largest_patch_size is None else float(np.prod(largest_patch_size))
    lengths = patch_lengths(shape, voxel, voxels, largest_patch_size)
    strides, kernels = steps(lengths, voxel, shape)
    intensity = found.intensity if found.modality == CT else None
    planned = {"strides": tuple(strides), "kernel_sizes": tuple(kernels), "intensity": intensity} | model
    multiples = np.prod(planned["strides"][: len(channels) - 1], axis=0).tolist()
    size = whole_lengths(lengths, shape, multiples, largest_patch_size)
    thick = _slice_axis(voxel)
    count = batch_size if batch_voxels is None else max(min(batch_size, int(batch_voxels // np.prod(size))), 1)
    balance = class_balance(report, count)
    return Plan(
        spacing=_tuple(spacing),
        patch_size=tuple(size),
        batch_size=count,
        channels=tuple(channels),
        class_balance=balance,
        flip_prob=(0.0 if found.lateral else FLIP, 0.0, 0.0),
        slice_axis=thick,
        reasons=_reasons(found, voxel, shape, voxels, _model_reason(report, like), thick, balance)
        | {"voxel size": _spacing_reason(report.spacings_agree, found.spacing, spacing, requested_spacing)},
        fingerprint=asdict(found),
        **planned,
    )


def _as(like: ModelDescription | None) -> dict[str, Any]:
    """Return the choices of a model that is trained further; none without one."""
    if like is None:
        return {}
    if like.network is None:
        return {"intensity": like.intensity}
    form = form_network(like.network)
    return {"intensity": like.intensity, "strides": tuple(form.strides), "kernel_sizes": tuple(form.kernel_sizes)}


def chosen(planned: Plan, network: nn.Module, **settings: Any) -> Plan:
    """Return a plan with the settings that a training uses, as far as they differ from the plan.

    Args:
        planned: the plan.
        network: the training's network.
        settings: values of fields of :class:`Plan`.
    """
    if isinstance(network, UNet3D):
        settings |= {"channels": network.config["channels"], "strides": network.strides}
        settings |= {"kernel_sizes": network.kernel_sizes}
    else:
        settings |= {"channels": ()}
    if "flip_prob" in settings:
        settings["flip_prob"] = ensure_tuple_rep(settings["flip_prob"], 3)
    actual = replace(planned, **{name: _tuple(value) for name, value in settings.items()})
    written = json.loads(actual.to_json())  # a plan that cannot be read again would be kept, and block the folder
    check_choices({name: written[name] for name in settings})
    before = {name: value for name, value, _ in planned.lines()}
    reasons = {name: why if value == before[name] else "as requested" for name, value, why in actual.lines()}
    return replace(actual, reasons=reasons)


def planned_spacing(
    report: DataReport,
    spacing: Any,
    plan_file: str | Path | None = None,
    minutes: float | None = None,
    patch_voxels: float = 64**3,
) -> Any:
    """Return the voxel size in mm for "auto"; any other `spacing` as it is.

    Args:
        report: report on the data set, without errors.
        spacing: "auto", or anything else.
        plan_file: file of a plan, which then determines the voxel size.
        minutes: duration of the training. In a few minutes a network learns nothing from small parts of large volumes:
            it then sees coarser voxels, so that a patch covers a quarter of a typical volume, as nnU-Net's lower
            resolution. None for a training whose duration is not limited.
        patch_voxels: number of voxels that a patch may have.

    Returns:
        The plan's voxel size; or a coarser one; or the median if the cases' differ; or None for volumes as they are.
    """
    if spacing != AUTO:
        return spacing
    if plan_file is not None:
        return read_plan(plan_file).spacing
    found = fingerprint(report)
    size = list(found.spacing)
    if minutes is not None and minutes < LONG and not has_parts(report.data_set.cases):
        size = coarsened([found.extent], size, patch_voxels / COVERED)
    return None if report.spacings_agree and size == list(found.spacing) else size


def read_plan(path: str | Path) -> Plan:
    """Read a plan's file.

    Raises:
        DataError: when it is not a plan, a field is missing or not valid, or a newer version wrote it.
    """
    check_no_pipe(Path(path).expanduser())
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a plan ({error}). {CURE}") from error
    content = parse_json(text, str(path), "a plan", CURE)
    check_plan(content, str(path))
    known = {entry.name: _tuple(content[entry.name]) for entry in fields(Plan) if entry.name in content}
    return Plan(**{"sparse3dunet_version": None, **known})


def check_replaceable(path: str | Path) -> None:
    """Raise DataError if a plan cannot be written to a path, since another file is there; an empty one may be."""
    if not os.path.lexists(path) or (os.path.isfile(path) and os.path.getsize(path) == 0):
        return
    try:
        read_plan(path)
    except DataError as error:
        raise DataError(
            f"{path} exists and is no plan that this version writes, and is kept; expected a plan or no file. Pass "
            "another file for the plan, such as plan.json, or move it away."
        ) from error


def write_plan(plan: Plan, path: str | Path) -> None:
    """Write a plan's file.

    Raises:
        DataError: when there is another file than a plan.
    """
    check_replaceable(path)
    write_text(Path(path), plan.to_json())


def _check_fits(plan: Plan, found: Fingerprint, path: str | Path) -> Plan:
    """Raise DataError if a plan was made for other classes: their sides decide about flips."""
    names = plan.fingerprint.get("class_names")
    if names is not None and list(names) != list(found.class_names):
        raise DataError(
            f"{path}: it is for the classes {', '.join(names)}, the data set has {', '.join(found.class_names)}. {CURE}"
        )
    if plan.intensity is not None and found.modality != CT:
        raise DataError(
            f"{path}: it normalises on the absolute scale of CT, but these images are no CT (declare them as such: "
            '"modality": {"0": "CT"} in dataset.json). ' + CURE
        )
    return plan


def _slice_axis(voxel: Sequence[float]) -> int | None:
    """Return the axis across thick slices; None if no axis is much longer than both others."""
    order = np.argsort(voxel)
    return int(order[2]) if voxel[order[2]] > THICK * voxel[order[1]] else None


def _reasons(
    found: Fingerprint,
    voxel: Sequence[float],
    shape: Sequence[float],
    voxels: float,
    model: str,
    thick: int | None,
    balance: float,
) -> dict[str, str]:
    mm = _by_axis(voxel, ".3g")
    rarest = int(np.argmin([count or np.inf for count in found.class_voxels]))
    share = found.class_voxels[rarest] / max(sum(found.class_voxels), 1)
    cubes = max(voxel) < 2 * min(voxel)
    return {
        "patches": f"up to {voxels:,.0f} voxels of {mm} mm, as many mm along each axis as volumes of "
        f"{_by_axis(shape, '.0f')} allow",
        "network": model or ("voxels are nearly cubes" if cubes else "an axis is pooled once the others are as coarse"),
        "kernels": model
        or ("voxels are nearly cubes" if cubes else "they reach along an axis once the others are as coarse"),
        "intensities": model or _scale_reason(found),
        "class balance": f"{found.class_names[rarest]} has {share:.2%} of the annotated voxels, in "
        f"{found.class_cases[rarest]} of {found.cases} case(s)"
        + (": drawn more often, to be seen every few iterations" if balance else ""),
        "flips": f"{', '.join(found.lateral)} differ by side" if found.lateral else "no classes differ by side",
        "deformation": "slices are much thicker than their voxels" if thick is not None else "slices are thin",
    }


def _scale_reason(found: Fingerprint) -> str:
    if found.modality == CT:
        return "CT has an absolute scale: that of the annotated foreground"
    return "intensities of this kind of image have no absolute scale"


def _model_reason(report: DataReport, like: ModelDescription | None) -> str:
    """Return the reason to do as a model that is trained further; empty for none. Warns if its scale does not fit."""
    if like is None:
        return ""
    reason = "as the model that is trained further"
    values = [case.measurements.foreground for case in report.cases if case.measurements is not None]
    if like.intensity is None or not values:
        return reason
    foreground = np.concatenate(values)
    outside = np.mean((foreground < like.intensity["lower"]) | (foreground > like.intensity["upper"]))
    if outside <= OUTSIDE:
        return reason
    return f"{reason}; warning: {outside:.0%} of the annotated foreground are outside of its scale: train a new model"


def _spacing_reason(agree: bool, median: Sequence[float], spacing: Sequence[float] | None, requested: Any) -> str:
    if requested != AUTO:
        return "as requested" if agree or spacing else "as requested, though the cases' differ"
    if spacing is None:
        return "the cases' voxel sizes agree"
    if tuple(spacing) == tuple(median):
        return "the cases' differ: their median"
    return "coarser: in so few minutes a network learns more from patches that cover a quarter of a volume"


def _first(steps: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Return the first steps; more than there are do not change the size."""
    listed = [list(step) for step in steps[:count]]
    return listed + [[1, 1, 1]] * (count - len(listed))


def _listed(triples: Sequence[Sequence[int]]) -> str:
    """Return sizes by axis as text: one for all if they are equal."""
    texts = [_by_axis(triple, "d") for triple in triples]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _by_axis(values: Sequence[Any], form: str) -> str:
    return "x".join(format(value, form) for value in values)


def _tuple(value: Any) -> Any:
    """Turn lists, also nested, into tuples."""
    return tuple(map(_tuple, value)) if isinstance(value, (list, tuple)) else value
