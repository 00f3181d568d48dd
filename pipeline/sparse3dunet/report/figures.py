"""Figures of the report: planes through the point of lowest confidence, class surfaces, and training curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.collections import PolyCollection
from matplotlib.colors import ListedColormap, to_rgb
from scipy import ndimage

from sparse3dunet.colors import CLASS_COLORS, class_color
from sparse3dunet.data.slices import PLANES
from sparse3dunet.report.pictures import UNLABELED, Picture, mark_sides

PANELS = ("annotation", "prediction", "confidence", "image")
"""Pictures shown of each plane."""
CONFIDENCE_COLORS = "viridis"
_DPI = 100
_PANEL = 400  # pixels, of a panel's longer side
_SEARCHED = 160  # voxels along an axis in the search for the point of lowest confidence
_SURFACE = 96  # voxels along an axis of the grid for a surface
_PAD = 2  # voxels around this grid, so that surfaces close
_LEVEL = 0.45  # a little below one half: a sheet of one voxel remains after the smoothing
_PART_LETTERS = 56  # letters of the parts' names that fit above the curves
_CAMERA = (135.0, 20.0)  # azimuth, elevation in degrees: from the patient's left front, and above


@dataclass(frozen=True)
class CaseView:
    """Data of a case for pictures: arrays (X, Y, Z) in RAS order, all of the same shape.

    Attributes:
        name: name of the case.
        image: intensities.
        label: class numbers, meaningless where unlabeled.
        annotated: boolean, whether a voxel is annotated.
        segmentation: class numbers.
        confidence: uint8; 255 times the probability of the chosen class.
        spacing: voxel size in mm.
        class_names: class names by class number, background first.
        flipped: by axis, whether the file counts its slices from the other end, for slice numbers.
        sides: whether the file states the patient's orientation.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    annotated: np.ndarray
    segmentation: np.ndarray
    confidence: np.ndarray
    spacing: tuple[float, float, float]
    class_names: Sequence[str]
    flipped: tuple[bool, bool, bool] = (False, False, False)
    sides: bool = True

    def slice_number(self, axis: int, index: int) -> int:
        """Return the number in the file of the slice at an index along one of the view's axes; both from 0."""
        return self.image.shape[axis] - 1 - index if self.flipped[axis] else index


@dataclass(frozen=True)
class PlanePanels:
    """Pictures of one plane.

    Attributes:
        plane: axial, coronal or sagittal.
        number: number of the slice in the file, from 0.
        panels: PNG by PANELS, all of the same size.
    """

    plane: str
    number: int
    panels: Mapping[str, bytes]


# ------------------------------------------------------------ the point of lowest confidence


def doubt_point(view: CaseView) -> tuple[int, int, int]:
    """Return the voxel, in the view's order of axes, around which the confidence is lowest.

    It is unlabeled, unless all voxels are annotated, and in or near the foreground, unless there is none: an
    undertrained network is least confident in empty space, where a picture shows little.
    """
    steps = [math.ceil(n / _SEARCHED) for n in view.image.shape]
    some = tuple(slice(None, None, step) for step in steps)
    size = np.multiply(view.spacing, steps)
    sigma = 2 * size.min() / size
    unknown, foreground = ~view.annotated[some], view.segmentation[some] > 0
    if not unknown.any():
        unknown = np.ones_like(unknown)
    known_share = ndimage.gaussian_filter(unknown.astype(np.float32), sigma)
    doubt = np.where(unknown, 1 - view.confidence[some] / np.float32(255), 0)
    doubt = ndimage.gaussian_filter(doubt, sigma) / np.maximum(known_share, 1e-6)
    # Wide, so that a few voxels far from all others count little.
    density = ndimage.gaussian_filter(foreground.astype(np.float32), 3 * sigma, mode="constant")
    near = unknown & (density > 0.05 * density.max())
    candidates = np.argwhere(near if near.any() else unknown)
    values = (doubt * np.sqrt(density if near.any() else 1))[tuple(candidates.T)]
    best = candidates[values >= values.max() - 1e-4]
    x, y, z = best[density[tuple(best.T)].argmax()] * steps  # among equal ones, amid the foreground
    return int(x), int(y), int(z)


def doubt_panels(view: CaseView) -> tuple[tuple[int, int, int], list[PlanePanels]]:
    """Return pictures of three planes through :func:`doubt_point`: axial, coronal, sagittal.

    Returns:
        The point, in the view's order of axes, and the planes.
    """
    point = doubt_point(view)
    sample = view.image[tuple(slice(None, None, math.ceil(n / _SEARCHED)) for n in view.image.shape)]
    low, high = np.percentile(np.nan_to_num(sample), (0.5, 99.5))
    gray = (float(low), max(float(high), float(low) + 1e-6))
    planes = []
    for axis in (2, 1, 0):
        panels = {kind: _panel(view, point, axis, kind, gray) for kind in PANELS}
        planes.append(PlanePanels(PLANES[axis], view.slice_number(axis, point[axis]), panels))
    return point, planes


def _panel(view: CaseView, point: Sequence[int], axis: int, kind: str, gray: tuple[float, float]) -> bytes:
    def plane(volume: np.ndarray) -> np.ndarray:
        """Return a slice for display, with the second remaining axis (superior, or anterior) upwards."""
        return np.rot90(volume[(slice(None),) * axis + (point[axis],)])

    across, up = (a for a in range(3) if a != axis)
    shape = view.image.shape
    figure, ax = _canvas(shape[across] * view.spacing[across], shape[up] * view.spacing[up], _PANEL, "black")
    look: dict[str, Any] = {"aspect": "auto", "extent": (-0.5, shape[across] - 0.5, -0.5, shape[up] - 0.5)}
    ax.imshow(np.nan_to_num(plane(view.image)), cmap="gray", vmin=gray[0], vmax=gray[1], **look)
    look["interpolation"] = "nearest"
    if kind == "annotation":
        known = plane(view.annotated)
        _paint(ax, np.where(known, plane(view.label), 0), look)
        unlabeled = np.ma.masked_where(known, np.ones(known.shape))
        ax.imshow(unlabeled, cmap=ListedColormap([UNLABELED]), alpha=0.55, **look)
    elif kind == "prediction":
        _paint(ax, plane(view.segmentation), look)
    elif kind == "confidence":
        ax.imshow(plane(view.confidence), cmap=CONFIDENCE_COLORS, vmin=0, vmax=255, **look)
    _mark(ax, point[across], point[up])
    if view.sides:
        mark_sides(ax, axis)
    return figure.png()


def _paint(ax: Any, classes: np.ndarray, look: Mapping[str, Any]) -> None:
    """Draw translucent class colours."""
    number = max(int(classes.max()), 2)
    colors = ListedColormap([class_color(i) for i in range(1, number + 1)])
    ax.imshow(np.ma.masked_equal(classes, 0), cmap=colors, vmin=1, vmax=number, alpha=0.6, **look)


def _mark(ax: Any, x: float, y: float) -> None:
    """Draw cross hairs that leave the point itself free."""
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    inches = ax.figure.get_size_inches()
    gaps = (right - left) * 0.14 / inches[0], (high - low) * 0.14 / inches[1]
    for color, width in (("black", 2.4), ("white", 1.0)):  # visible on any background
        style: dict[str, Any] = {"color": color, "linewidth": width, "alpha": 0.8}
        ax.plot([left, x - gaps[0]], [y, y], **style)
        ax.plot([x + gaps[0], right], [y, y], **style)
        ax.plot([x, x], [low, y - gaps[1]], **style)
        ax.plot([x, x], [y + gaps[1], high], **style)
    ax.set(xlim=(left, right), ylim=(low, high))


def confidence_bar() -> bytes:
    """Return a PNG of the colours of the confidence, from 0 on the left to 1."""
    figure, ax = _canvas(240, 16, 240, "black")
    ax.imshow(np.linspace(0, 1, 240)[None], cmap=colormaps[CONFIDENCE_COLORS], aspect="auto")
    return figure.png()


# ------------------------------------------------------------ surfaces


def surface(view: CaseView, number: int) -> bytes | None:
    """Return a PNG, with a transparent background, of the surface of a class seen from the patient's left front.

    Args:
        view: data of the case.
        number: class number.

    Returns:
        The PNG; None if no voxel is of the class.
    """
    mask = view.segmentation == number
    if not mask.any():
        return None
    vertices, faces = surface_mesh(mask, view.spacing)
    right, up, toward = _camera(*_CAMERA)
    normals = _vertex_normals(vertices, faces)
    visible = faces[np.cross(*_edges(vertices, faces)) @ toward > 0]
    visible = visible[np.argsort((vertices @ toward)[visible].mean(1))]  # the nearest are drawn last

    light = toward + 0.6 * up - 0.5 * right
    brightness = np.clip(normals @ (light / np.linalg.norm(light)), 0, 1)[visible].mean(1)
    shine = 0.25 * brightness[:, None] ** 12
    colors = np.clip((0.3 + 0.7 * brightness[:, None]) * to_rgb(class_color(number)) + shine, 0, 1)

    flat = np.stack([vertices @ right, vertices @ up], axis=1)
    low, high = flat.min(0), flat.max(0)
    width, height = np.maximum(high - low, 1e-3)
    figure, ax = _canvas(width, height, _PANEL, "none")
    # Without antialiasing, the background does not show through between triangles.
    ax.add_collection(PolyCollection(flat[visible], facecolors=colors, edgecolors=colors, lw=0.3, antialiased=False))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure.png()


def surface_mesh(mask: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a closed, lightly smoothed surface around a mask that is not empty.

    Args:
        mask: (X, Y, Z) boolean.
        spacing: voxel size in mm.

    Returns:
        Vertices (V, 3) in mm relative to the first voxel's centre, within the outer faces of the mask's voxels; and
        triangles (F, 3), counter-clockwise as seen from outside.
    """
    from skimage.measure import marching_cubes

    box = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))[[0, -1]] for axis in range(3)]
    first, last = np.array(box).T
    solid = mask[tuple(slice(a, b + 1) for a, b in zip(first, last))]
    steps = np.ceil(np.array(solid.shape) / _SURFACE).astype(int)
    shares = np.pad(_block_means(solid, steps), _PAD)
    smooth = ndimage.gaussian_filter(shares, 0.6, mode="constant")
    vertices, faces, *_ = marching_cubes(smooth, min(_LEVEL, float(smooth.max()) / 2))
    vertices = (vertices - _PAD + 0.5) * steps - 0.5 + first
    # scikit-image winds triangles clockwise as seen from outside.
    return np.clip(vertices, first - 0.5, last + 0.5) * np.asarray(spacing), faces[:, ::-1]


def _block_means(mask: np.ndarray, steps: Any) -> np.ndarray:
    """Return the share (float32) of each block of `steps` voxels that is in the mask; outside of the array none is."""
    padded = np.pad(mask, [(0, -n % step) for n, step in zip(mask.shape, steps)])
    for axis, step in enumerate(steps):
        parts = [padded[(slice(None),) * axis + (slice(start, None, step),)] for start in range(step)]
        padded = np.asarray(np.mean(parts, axis=0, dtype=np.float32))
    return padded


def _camera(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors to the right, up, and towards the viewer."""
    a, e = math.radians(azimuth), math.radians(elevation)
    toward = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([-math.sin(a), math.cos(a), 0.0])
    return right, np.cross(toward, right), toward


def _edges(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    corners = vertices[faces]
    return corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]


def _vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return unit normals (V, 3): means over the triangles at a vertex, weighted by area."""
    areas = np.cross(*_edges(vertices, faces))
    sums = [np.bincount(faces.ravel(), np.repeat(areas[:, axis], 3), len(vertices)) for axis in range(3)]
    normals = np.stack(sums, axis=1)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


# ------------------------------------------------------------ training curves


def course(curves: Mapping[str, Sequence[Mapping[str, float | None]]]) -> bytes:
    """Return a PNG of the loss, and the Dice on held-out slices, over time; the training's parts follow each other.

    Args:
        curves: by part, rows with ``seconds`` since its start, ``loss`` and ``dice``; None for missing values.
    """
    figure = Picture(figsize=(5.4, 3.1), dpi=200, facecolor="white", layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    lengths = [_length(rows) for rows in curves.values()]
    total, begin, scored = sum(lengths), 0.0, False
    for (part, rows), length in zip(curves.items(), lengths):
        minutes = [begin + _number(row, "seconds") / 60 for row in rows]
        times, losses = _points(minutes, rows, "loss")
        left.plot(times, losses, color=CLASS_COLORS[4], linewidth=1.6, marker="." if len(times) < 3 else "")
        times, dice = _points(minutes, rows, "dice")
        right.plot(times, dice, color=CLASS_COLORS[5], marker="o", markersize=4, linewidth=0.8)
        scored |= len(times) > 0
        if begin and length:
            left.axvline(begin, color="#999999", linewidth=0.8, linestyle=":")
        _name_part(left, part, begin + length / 2, int(_PART_LETTERS * length / total) if total else 0)
        begin += length
    left.set_xlabel("training time (minutes)", fontsize=10)
    left.set_ylabel("loss (line)", color=CLASS_COLORS[4], fontsize=10)
    left.set_xlim(0, total or 1)
    left.spines[["top"]].set_visible(False)
    right.spines[["top"]].set_visible(False)
    right.set_ylim(0, 1)
    if scored:
        right.set_ylabel("Dice on held-out slices (dots)", color=CLASS_COLORS[5], fontsize=10)
    else:
        right.set_axis_off()
    return figure.png()


def _length(rows: Sequence[Mapping[str, float | None]]) -> float:
    """Return the duration of a part in minutes."""
    minutes = [_number(row, "seconds") / 60 for row in rows]
    return max((m for m in minutes if math.isfinite(m)), default=0.0)


def _points(
    minutes: Sequence[float], rows: Sequence[Mapping[str, float | None]], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return times and values of the rows that have both."""
    times, values = np.array(minutes, float), np.array([_number(row, key) for row in rows], float)
    known = np.isfinite(times) & np.isfinite(values)
    return times[known], values[known]


def _name_part(ax: Any, name: str, middle: float, room: int) -> None:
    """Write a part's name above its curves, shortened to the available letters."""
    if len(name) > room:
        name = name[: room - 1] + "…" if room > 3 else ""
    place = {"ha": "center", "va": "bottom", "transform": ax.get_xaxis_transform()}
    ax.text(middle, 1.02, name, fontsize=9, **place)


def _number(row: Mapping[str, float | None], key: str) -> float:
    value = row.get(key)
    return math.nan if value is None else float(value)


# ------------------------------------------------------------ drawing


def _canvas(width: float, height: float, pixels: int, ground: str) -> tuple[Picture, Any]:
    """Return a figure of these proportions, `pixels` on the longer side, filled by its axes."""
    scale = pixels / max(width, height)
    size = np.maximum((width * scale, height * scale), 16)  # a volume of one slice is shown from the side too
    figure = Picture(figsize=tuple(size / _DPI), dpi=_DPI, facecolor=ground)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    return figure, ax
