"""3D Slicer's segmentations: segments with names, in one layer or, where they overlap, in several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sparse3dunet.colors import class_color
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_segments


@dataclass(frozen=True)
class Segment:
    """Segment: name, layer, value in this layer, and value in the label map."""

    name: str
    layer: int
    value: int
    label: int


def segments_in(path: Path, header: sitk.ImageFileReader) -> list[Segment]:
    """Return the segments that the header of an NRRD file lists; those of ``--segments``, in its order, if it is set.

    Their values in the label map are those in the file or, where those of several layers are equal, 1, 2, ...

    Raises:
        DataError: when a value or a layer cannot be one, or two segments have the same; when a name of ``--segments``
            is none.
    """
    metadata = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys()}
    numbers = sorted({int(match[1]) for key in metadata if (match := re.match(r"Segment(\d+)_", key))})
    layers = header.GetNumberOfComponents()
    found: list[tuple[str, int, int]] = []
    for number in numbers:
        name = metadata.get(f"Segment{number}_Name", "").strip() or f"segment {number + 1}"
        value = _whole(path, name, "value", metadata.get(f"Segment{number}_LabelValue", "1"), 1, np.iinfo(np.int16).max)
        own = str(number if layers > 1 else 0)  # older versions: one layer for each segment
        layer = _whole(path, name, "layer", metadata.get(f"Segment{number}_Layer", own), 0, layers - 1)
        found.append((name, layer, value))
    if len({(layer, value) for _, layer, value in found}) < len(found):
        raise DataError(
            f"{path}: two segments have the same value in the same layer; expected different ones. Save the "
            "segmentation again in 3D Slicer."
        )
    are_unique = len({value for *_, value in found}) == len(found)
    segments = [Segment(*one, one[2] if are_unique else number) for number, one in enumerate(found, 1)]
    return _chosen(path, segments) if segments else []


def _whole(path: Path, name: str, what: str, text: str, least: int, most: int) -> int:
    text = text.strip()
    if not text.isdecimal() or not least <= int(text) <= most:
        bits = ": segmentations are written in 16 bits" if text.isdecimal() and what == "value" else ""
        raise DataError(
            f"{path}: the segment {name!r} has the {what} {text!r}; expected a whole number from {least} to "
            f"{most}{bits}. Save the segmentation again in 3D Slicer."
        )
    return int(text)


def _chosen(path: Path, segments: Sequence[Segment]) -> list[Segment]:
    names = default_segments()
    if not names:
        return list(segments)
    missing = [name for name in names if name not in {segment.name.lower() for segment in segments}]
    if missing:
        raise DataError(
            f"{path}: no segment is named {', '.join(missing)} (--segments); found "
            f"{', '.join(segment.name for segment in segments)}. Correct the names."
        )
    return [segment for name in names for segment in segments if segment.name.lower() == name]


def label_map(path: Path, voxels: np.ndarray, segments: Sequence[Segment]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the label map (X, Y, Z) of a segmentation, 0 in no segment, and notes; other images as they are.

    Args:
        path: for messages.
        voxels: (X, Y, Z), or (X, Y, Z, L) in several layers.
        segments: those to use, of which later ones count where ``--segments`` gave their order.

    Raises:
        DataError: when segments overlap, and no order was given.
    """
    if not segments or (voxels.ndim == 3 and not default_segments()):
        return voxels, ()
    layers = voxels if voxels.ndim == 4 else voxels[..., None]
    result = np.zeros(layers.shape[:3], np.int16, order="F")
    overlaps: dict[tuple[str, str], int] = {}
    for place, segment in enumerate(segments):
        inside = layers[..., segment.layer] == segment.value
        for before in segments[:place]:
            count = int((inside & (result == before.label)).sum())
            if count:
                overlaps[before.name, segment.name] = count
        result[inside] = segment.label
    if overlaps and not default_segments():
        shown = "; ".join(f"{one} and {other} in {n} voxels" for (one, other), n in list(overlaps.items())[:5])
        raise DataError(
            f"{path}: segments overlap: {shown}; expected at most one class for each voxel. Name the segments to use, "
            f"later ones over earlier ones, for example --segments '{','.join(next(iter(overlaps)))}'."
        )
    return result, tuple(
        f"{path}: {count} voxels are in {one} and in {other}, and count as {other} (--segments)."
        for (one, other), count in overlaps.items()
    )


def check_segment_values(path: str | Path, class_names: Mapping[int, str]) -> None:
    """Raise DataError unless the values of all classes but the first can be those of 3D Slicer's segments."""
    for value, name in list(class_names.items())[1:]:
        if value <= 0:
            raise DataError(
                f"{path}: the class {name!r} has the value {value}; expected a positive one, as 3D Slicer requires. "
                "Write to .nii.gz or .nrrd, or train with other values."
            )


def slicer_segments(shape: tuple[int, ...], class_names: Mapping[int, str]) -> dict[str, str]:
    """Return 3D Slicer's metadata of a segmentation in one layer, with a segment for each class but the first."""
    metadata = {}
    for i, (value, name) in enumerate(list(class_names.items())[1:]):
        segment = {
            "ID": f"Segment_{i + 1}",
            "Name": name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{int(part, 16) / 255:.6g}" for part in re.findall(r"[0-9a-f]{2}", class_color(i + 1))),
            "ColorAutoGenerated": "0",
            "LabelValue": str(value),
            "Layer": "0",
            "Extent": " ".join(f"0 {n - 1}" for n in shape),
            "Tags": "Segmentation.Status:inprogress|",
        }
        metadata.update({f"Segment{i}_{key}": text for key, text in segment.items()})
    return {
        **metadata,
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
