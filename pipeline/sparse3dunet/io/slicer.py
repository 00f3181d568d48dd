"""3D Slicer's segmentations: segments with names, in one layer or, where they overlap, in several."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from sparse3dunet.colors import color_text, colors_of
from sparse3dunet.errors import DataError
from sparse3dunet.io.defaults import default_segments
from sparse3dunet.io.itk_names import is_utf8
from sparse3dunet.io.segments import check_overlaps, overlap_notes
from sparse3dunet.io.text_header import shown


@dataclass(frozen=True)
class Segment:
    """Segment: name, layer, value in this layer, value in the label map, and colour as #rrggbb, "" if not stated."""

    name: str
    layer: int
    value: int
    label: int
    color: str = ""


def segments_in(path: Path, header: sitk.ImageFileReader) -> list[Segment]:
    """Return the segments that the header of an NRRD file lists.

    Their values in the label map are those in the file or, where those of several layers are equal, 1, 2, ...

    Raises:
        DataError: when a value or a layer cannot be one, two segments have the same, or the name of a field of a
            segment is damaged.
    """
    metadata = _metadata(path, header)
    texts = {match[1] for key in metadata if (match := re.match(r"Segment([0-9]+)_", key))}
    numbers = sorted({_whole(path, f"Segment{text[:9]}", "number", text, 0, np.iinfo(np.int32).max) for text in texts})
    layers = header.GetNumberOfComponents()
    found: list[tuple[str, int, int]] = []
    colors = [_color(metadata.get(f"Segment{number}_Color", "")) for number in numbers]
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
    labels = [value if are_unique else number for number, (*_, value) in enumerate(found, 1)]
    return [Segment(*one, label, color) for one, label, color in zip(found, labels, colors)]


def _metadata(path: Path, header: sitk.ImageFileReader) -> dict[str, str]:
    """Return the fields of a header by name; SimpleITK cannot return those whose names are no UTF-8."""
    names = header.GetMetaDataKeys()
    readable = [name for name in names if is_utf8(name)]
    if any(name.startswith("Segment") for name in names if name not in readable):
        raise DataError(
            f"{path}: a field of its header that describes a segment has a name that is not in UTF-8; expected "
            "Segment0_Name and the like. The file is damaged; save it again."
        )
    return {name: header.GetMetaData(name) for name in readable}


def _color(text: str) -> str:
    """Return a colour, three numbers from 0 to 1, as #rrggbb; "" for anything else."""
    try:
        parts = [float(part) for part in text.split()]
    except ValueError:
        return ""
    fits = len(parts) == 3 and all(0 <= part <= 1 for part in parts)  # which NaN is not
    return color_text([round(255 * part) for part in parts]) if fits else ""


def _whole(path: Path, name: str, what: str, text: str, least: int, most: int) -> int:
    text = text.strip()
    number = int(text) if re.fullmatch(r"\d{1,18}", text) else -1  # Python refuses numbers of thousands of digits
    if not least <= number <= most:
        bits = ": segmentations are written in 16 bits" if text.isdecimal() and what == "value" else ""
        raise DataError(
            f"{path}: the segment {name!r} has the {what} {shown(text)}; expected a whole number from {least} to "
            f"{most}{bits}. Save the segmentation again in 3D Slicer."
        )
    return number


def label_map(path: Path, voxels: np.ndarray, segments: Sequence[Segment]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the label map (X, Y, Z) of a segmentation in layers, 0 in no segment, and notes; others as they are.

    Segments that ``--segments`` names count over others, later ones over earlier ones.

    Args:
        path: for messages.
        voxels: (X, Y, Z), or (X, Y, Z, L) in layers.
        segments: all of its segments.

    Raises:
        DataError: when segments overlap of which ``--segments`` names none, or voxels are in no segment of their layer.
    """
    if not segments or voxels.ndim == 3:
        return voxels, ()
    order = default_segments()
    ordered = sorted(segments, key=lambda s: order.index(s.name.lower()) if s.name.lower() in order else -1)
    names = {segment.label: segment.name for segment in segments}
    result = np.zeros(voxels.shape[:3], np.int16, order="F")
    strays, overlaps = int(np.count_nonzero(voxels)), {}
    for segment in ordered:
        inside = voxels[..., segment.layer] == segment.value
        counts = np.bincount(result[inside]).tolist()
        strays -= sum(counts)
        overlaps.update({(names[label], segment.name): n for label, n in enumerate(counts) if label and n})
        result[inside] = segment.label
    if strays:
        raise DataError(
            f"{path}: {strays} voxels have a value that no segment of their layer has. Save the segmentation again in "
            "3D Slicer."
        )
    check_overlaps(path, {pair: n for pair, n in overlaps.items() if pair[1].lower() not in order})
    return result, overlap_notes(path, overlaps)


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
    classes = list(zip(class_names.items(), colors_of(class_names)))[1:]
    for i, ((value, name), color) in enumerate(classes):
        segment = {
            "ID": f"Segment_{i + 1}",
            "Name": name,
            "NameAutoGenerated": "0",
            "Color": " ".join(f"{part / 255:.6g}" for part in color),
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
