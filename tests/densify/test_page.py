"""The report: one page that needs nothing else, with the numbers, the pictures and the surfaces of a densification."""

import base64
import dataclasses
import io
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest

from sparse3dunet.densify import page as report_module
from sparse3dunet.densify.estimate import ClassEstimate, Estimate
from sparse3dunet.densify.page import CaseSection, Report, write_report
from sparse3dunet.densify.suggest import Suggestion
from sparse3dunet.report.figures import (
    PANELS,
    CaseView,
    course,
    doubt_panels,
    doubt_point,
    surface,
    surface_mesh,
)
from tests.conftest import UNLABELED, make_volume

NAMES = ("background", "shell", "core")


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png))


def is_blank(png):
    found = pixels(png)
    return bool((found == found[0, 0]).all())


class Page(HTMLParser):
    """What a browser would take a page for."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.style = [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "style" and not self.style:
            self.style = data
        else:
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def images(self):
        start = "data:image/png;base64,"
        assert all(image["src"].startswith(start) for image in self.all("img"))
        return [base64.b64decode(image["src"].removeprefix(start)) for image in self.all("img")]


@pytest.fixture
def view():
    """A volume of (24, 20, 18) with the middle slices annotated."""
    image, dense, sparse = make_volume(0)
    annotated = sparse != UNLABELED
    confidence = np.where(annotated, 255, 230).astype(np.uint8)
    return CaseView("a", image, np.where(annotated, sparse, 0), annotated, dense, confidence, (1.0, 1.5, 2.0), NAMES)


@pytest.fixture
def report(view):
    suggestions = [Suggestion("axial", 2, 4, 12.25, 1.0, 0.123, None), Suggestion("coronal", 1, 3, 7, 0.5, 0.1, 10.5)]
    files = {"segmentation": "a_seg.nii.gz", "template": "a_next.nii.gz"}
    case = CaseSection("a", {"shell": 1.25, "core": 0.5}, 0.9, suggestions, files, view)
    scores = [
        ClassEstimate("background", 0.99, 0.97, 1.0, 0.98, 3, 0.98),
        ClassEstimate("shell", 0.876, 0.81, 0.92, 0.78, 3, 0.86),
    ]
    quality = Estimate([*scores, ClassEstimate("core", None, None, None, None, 0)], 3, 1, 1, 0.83, 0.91)
    row = {"seconds": 30.0, "loss": 0.5, "dice": None}
    curves = {"held out 1": [row, {"seconds": 60.0, "loss": 0.4, "dice": 0.7}], "final": [row]}
    plan = [("patches", "64x64x64", "as large as most volumes")]
    made = {"plan": plan, "command": "densify a.nii.gz", "settings": "a: 1\n", "versions": {"torch": "2.6"}}
    return Report("a", NAMES, [case], quality, curves, notes=["stopped early"], **made)


def written(report, tmp_path):
    write_report(tmp_path / "report.html", report)
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------ the page


def test_page_needs_nothing_else(report, tmp_path):
    page = written(report, tmp_path)
    for tag in ("script", "link", "iframe", "object", "base"):
        assert not page.all(tag)
    assert "url(" not in page.style
    assert "@import" not in page.style
    targets = [attributes["href"] for attributes in page.all("a")]
    assert set(targets) == {"#case-0", "a_seg.nii.gz", "a_next.nii.gz"}
    assert {"id": "case-0", "aria-labelledby": "case-0-h"} in page.all("section")


def test_images_are_embedded_and_show_something(report, tmp_path):
    page = written(report, tmp_path)
    images = page.images()
    assert len(images) == 3 * len(PANELS) + 1 + 2 + 1  # panels, colour bar, surfaces, curves
    assert not any(map(is_blank, images))
    assert all(image["alt"] for image in page.all("img"))


def test_page_tells_the_numbers(report, tmp_path):
    text = written(report, tmp_path).text
    for told in ("0.876", "0.780", "1.25", "12.2", "10.5", "0.123", "stopped early", "densify a.nii.gz", "64x64x64"):
        assert told in text
    assert "Annotate these slices next" in text


def test_classes_that_no_slice_shows_are_not_evaluable(report, tmp_path):
    assert written(report, tmp_path).text.count("not evaluable") == 3  # Dice, IoU and held-out Dice


def test_without_held_out_slices_the_reason_is_told(report, tmp_path):
    quality = Estimate(reason="only one slice is annotated")
    text = written(dataclasses.replace(report, quality=quality), tmp_path).text
    assert "Not evaluable: only one slice is annotated" in text


def test_text_of_users_is_escaped(report, tmp_path):
    names, evil = ("background", "<b>x</b>", "a & b"), '"><i onclick="x">ünï\'</i>{{ 7 * 7 }}{% endif %}'
    case = dataclasses.replace(
        report.cases[0],
        name=evil,
        ml={"<b>x</b>": 1.0, "a & b": 2.0},
        files={"segmentation": evil, "template": evil},
        view=dataclasses.replace(report.cases[0].view, name=evil, class_names=names),
    )
    quality = Estimate([ClassEstimate(name, 0.5, 0.4, 0.6, 0.4, 1) for name in names], 1, 1, 1)
    texts = {"title": evil, "command": evil, "settings": evil, "notes": [evil], "versions": {evil: evil}}
    changed = dataclasses.replace(report, class_names=names, cases=[case], quality=quality, plan=[(evil,) * 3], **texts)
    page = written(changed, tmp_path)
    assert not page.all("b")
    assert not any("onclick" in attributes for _, attributes in page.tags)
    for told in (evil, "<b>x</b>", "a & b"):
        assert told in page.text
    assert sum(evil in image["alt"] for image in page.all("img")) == 3 * len(PANELS) + 2


def test_file_names_that_are_no_text(report, tmp_path):
    case = dataclasses.replace(report.cases[0], name="a\udcff", files={"segmentation": "a\udcff.nii"}, view=None)
    page = written(dataclasses.replace(report, cases=[case]), tmp_path)
    assert [attributes["href"] for attributes in page.all("a")][1:] == ["a%FF.nii"]
    assert "a?" in page.text


def test_link_that_looks_like_an_address_stays_a_relative_path(report, tmp_path):
    case = dataclasses.replace(
        report.cases[0], files={"segmentation": "javascript:alert(1)", "confidence": "a b#1.nii"}
    )
    targets = [
        attributes["href"] for attributes in written(dataclasses.replace(report, cases=[case]), tmp_path).all("a")
    ]
    assert targets[1:] == ["javascript%3Aalert%281%29", "a%20b%231.nii"]


def test_case_without_view_has_no_pictures(report, tmp_path):
    case = dataclasses.replace(report.cases[0], view=None, mean_confidence=None)
    page = written(dataclasses.replace(report, cases=[case], curves={}), tmp_path)
    assert not page.all("img")
    assert "Annotate these slices next" in page.text


def test_interrupted_write_leaves_the_old_page(report, tmp_path, monkeypatch):
    written(report, tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path / "report.html", dataclasses.replace(report, title="new"))
    assert (tmp_path / "report.html").read_bytes() == before


def test_only_the_largest_of_many_classes_have_surfaces(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "SURFACES", 1)
    page = written(report, tmp_path)
    surfaces = [image["alt"] for image in page.all("img") if image["alt"].startswith("surface")]
    assert surfaces == ["surface of shell in a"]
    assert "1 largest of 2 classes" in page.text


# ------------------------------------------------------------ the place of highest doubt


def with_doubt(view, *places):
    """With confidence lower in cubes of 3 voxels: (centre, confidence)."""
    confidence = view.confidence.copy()
    for centre, value in places:
        confidence[tuple(slice(c - 1, c + 2) for c in centre)] = value
    return dataclasses.replace(view, confidence=np.where(view.annotated, 255, confidence).astype(np.uint8))


def test_doubt_is_found_near_the_foreground(view):
    planted = (7, 7, 6)
    assert view.segmentation[planted] > 0
    point = doubt_point(with_doubt(view, (planted, 90), ((1, 1, 1), 20)))
    assert np.abs(np.subtract(point, planted)).max() <= 1


def test_doubt_is_not_looked_for_in_annotated_slices(view):
    beside = (13, 11, 10)  # annotated are 12, 10 and 9
    point = doubt_point(with_doubt(view, (beside, 50)))
    assert not view.annotated[point]
    assert np.abs(np.subtract(point, beside)).max() <= 1


def test_doubt_without_foreground_or_without_unannotated_voxels(view):
    planted = (5, 5, 4)
    doubtful = with_doubt(view, (planted, 50))
    empty = dataclasses.replace(doubtful, segmentation=np.zeros_like(view.segmentation))
    assert np.abs(np.subtract(doubt_point(empty), planted)).max() <= 1
    point = doubt_point(dataclasses.replace(view, annotated=np.ones_like(view.annotated)))
    assert view.segmentation[point] > 0


def test_panels_have_the_volumes_proportions(view):
    point, planes = doubt_panels(view)
    extents = np.multiply(view.image.shape, view.spacing)
    for found, (across, up), axis in zip(planes, ((0, 1), (0, 2), (1, 2)), (2, 1, 0)):
        assert found.number == point[axis]
        shapes = {pixels(png).shape for png in found.panels.values()}
        assert len(shapes) == 1
        height, width, _ = shapes.pop()
        assert width / height == pytest.approx(extents[across] / extents[up], rel=0.02)
    assert [found.plane for found in planes] == ["axial", "coronal", "sagittal"]


def test_flipped_axes_are_numbered_as_in_the_file(view):
    point, planes = doubt_panels(dataclasses.replace(view, flipped=(True, False, True)))
    assert [found.number for found in planes] == [17 - point[2], point[1], 23 - point[0]]


def test_annotation_and_prediction_show_their_classes(view):
    _, planes = doubt_panels(view)
    axial = {kind: pixels(png)[..., :3] for kind, png in planes[0].panels.items()}
    colored = {kind: (found.max(2) - found.min(2) > 0.3).mean() for kind, found in axial.items()}
    assert colored["image"] == 0
    assert 0 < colored["annotation"] < colored["prediction"] / 2


@pytest.mark.parametrize("shape", [(1, 9, 9), (40, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("value", [0, 1])
def test_constant_and_thin_volumes(shape, value, report, tmp_path):
    classes = np.full(shape, value)
    flat = CaseView(
        "flat",
        np.full(shape, np.nan if value else 0.0),
        classes,
        np.full(shape, bool(value)),
        classes,
        np.full(shape, 255 * value, np.uint8),
        (1.0, 1.0, 5.0),
        NAMES,
    )
    case = dataclasses.replace(report.cases[0], view=flat)
    page = written(dataclasses.replace(report, cases=[case]), tmp_path)
    images = page.images()
    assert len(images) >= 3 * len(PANELS)
    assert all(pixels(png).size for png in images)
    assert ("No voxel is core." if value else "No voxel is shell or core.") in page.text


# ------------------------------------------------------------ surfaces


def test_class_without_voxels_has_no_surface(view):
    assert surface(view, 7) is None
    assert surface(dataclasses.replace(view, segmentation=np.zeros_like(view.segmentation)), 1) is None


def test_surface_shows_the_class_on_a_transparent_ground(view):
    found = pixels(surface(view, 1))
    assert found[0, 0, 3] == 0
    inside = found[..., 3] > 0.5
    assert 0.6 < inside.mean() < 0.9  # an ellipse in its box: 0.79
    assert found[inside][:, 0].mean() > 2 * found[inside][:, 2].mean()  # orange


def ball(size=41, radius=15.0):
    return ((np.indices((size,) * 3) - size // 2) ** 2).sum(0) < radius**2


def volume_inside(vertices, faces):
    corners = vertices[faces]
    return float((corners[:, 0] * np.cross(corners[:, 1], corners[:, 2])).sum() / 6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 3.0)])
def test_surface_is_closed_and_faces_outwards(spacing):
    mask = ball()
    mask[:, :, :20] = False  # flat where the volume could end
    vertices, faces = surface_mesh(mask, spacing)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()
    assert volume_inside(vertices, faces) == pytest.approx(mask.sum() * np.prod(spacing), rel=0.05)


def test_surface_closes_at_the_volumes_border():
    vertices, faces = surface_mesh(np.ones((6, 7, 8), bool), (1.0, 1.0, 1.0))
    assert volume_inside(vertices, faces) == pytest.approx(6 * 7 * 8, rel=0.1)


@pytest.mark.parametrize(
    "box",
    [
        (slice(3, 4), slice(3, 4), slice(3, 4)),
        (slice(2, 9), slice(4, 5), slice(1, 9)),
        (slice(0, 250), slice(5, 8), slice(0, 10)),  # longer than what surfaces are made of
    ],
)
def test_vertices_lie_within_the_masks_box(box):
    mask, spacing = np.zeros((250, 10, 10), bool), (0.5, 1.0, 2.0)
    mask[box] = True
    vertices, faces = surface_mesh(mask, spacing)
    places = np.argwhere(mask)
    assert len(faces)
    assert (vertices >= (places.min(0) - 0.5) * spacing - 1e-6).all()
    assert (vertices <= (places.max(0) + 0.5) * spacing + 1e-6).all()
    # nothing of it is lost, but for rounded ends
    assert (np.ptp(vertices, axis=0) > 0.5 * np.ptp(places, axis=0) * spacing).all()


def test_triangles_are_small_and_of_large_volumes_not_too_many():
    mask = np.repeat(np.repeat(ball(121, 50.0), 2, 0), 2, 1)
    vertices, faces = surface_mesh(mask, (1.0, 1.0, 1.0))
    corners = vertices[faces]
    assert np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max() < 2 * 3.0
    assert len(faces) < 100_000


# ------------------------------------------------------------ the training's course


@pytest.mark.parametrize(
    "curves",
    [
        {},
        {"final": []},
        {"final": [{"seconds": None, "loss": None, "dice": None}, {}]},
        {"a $part$ with quite a long name": [{"seconds": 3.0, "loss": float("nan"), "dice": 0.5}], "b": []},
    ],
)
def test_course_of_little_or_nothing(curves):
    assert pixels(course(curves)).shape[2] in (3, 4)


def test_course_shows_loss_and_dice(view):
    rows = [{"seconds": 60.0 * i, "loss": 1 / i, "dice": i / 10 if i % 2 else None} for i in range(1, 9)]
    without = [{**row, "dice": None} for row in rows]
    orange = []
    for shown in (rows, without):
        found = pixels(course({"held out 1": shown, "final": shown}))[..., :3]
        orange.append((found[..., 0] - found[..., 2] > 0.5).sum())
        assert (found[..., 2] - found[..., 0] > 0.5).sum() > 500  # the loss, blue
    assert orange[0] > 500
    assert orange[1] == 0
