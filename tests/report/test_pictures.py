"""Pictures show what they should: classes, errors and unlabeled voxels in their colours."""

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from sparse3dunet.colors import CLASS_COLORS
from sparse3dunet.report.figures import course
from sparse3dunet.report.pictures import WRONG, draw_picture, mark_sides
from tests.conftest import make_volume


def share_of_color(path, color):
    """Share of pixels close to a colour's hue, whatever lies beneath the translucent overlay."""
    pixels = matplotlib.image.imread(path)[..., :3].reshape(-1, 3)
    pixels = pixels[pixels.max(1) - pixels.min(1) > 0.15]
    target = np.array(to_rgb(color))
    directions = (pixels - pixels.mean(1, keepdims=True), target - target.mean())
    cosine = directions[0] @ directions[1] / np.linalg.norm(directions[0], axis=1) / np.linalg.norm(directions[1])
    return float((cosine > 0.97).sum())


@pytest.fixture
def case():
    image, dense, sparse = make_volume(0)
    return image, dense, np.where(sparse == 3, 0, sparse), (sparse != 3).astype(np.float32)


def test_error_is_red_only_where_wrong(case, tmp_path):
    image, dense, label, weight = case
    wrong = np.where(dense == 1, 2, dense)
    for name, guess in (("right", dense), ("wrong", wrong)):
        draw_picture(image, guess, label, weight, dense).save(tmp_path / f"{name}.png")
    right_red, wrong_red = (share_of_color(tmp_path / f"{n}.png", WRONG) for n in ("right", "wrong"))
    assert wrong_red > right_red + 1000  # the legend has a little red in both


def test_unlabeled_errors_do_not_show_without_reference(case, tmp_path):
    image, dense, label, weight = case
    spoiled = np.where(weight > 0, dense, 2)
    draw_picture(image, spoiled, label, weight).save(tmp_path / "a.png")
    draw_picture(image, dense, label, weight).save(tmp_path / "b.png")
    assert share_of_color(tmp_path / "a.png", WRONG) == share_of_color(tmp_path / "b.png", WRONG)


def test_unlabeled_voxels_are_tinted(case, tmp_path):
    image, dense, label, weight = case
    for name, counted in (("sparse", weight), ("dense", np.ones_like(weight))):
        draw_picture(image, dense, label, counted, dense).save(tmp_path / f"{name}.png")
    columns = [matplotlib.image.imread(tmp_path / f"{name}.png")[:, 230:450] for name in ("sparse", "dense")]
    assert (columns[0] != columns[1]).mean() > 0.05


def test_prediction_alone(case, tmp_path):
    image, dense, *_ = case
    draw_picture(image[None], dense[None], class_names=["background", "shell", "core"]).save(tmp_path / "sub" / "a.png")
    for color in CLASS_COLORS[:2]:
        assert share_of_color(tmp_path / "sub" / "a.png", color) > 1000


@pytest.mark.parametrize("name", ["a$1_$", r"v$\alpha_$", "M\udcfcller"])
def test_names_are_no_formulas(case, tmp_path, name):
    """Dollar signs are drawn as they are, and names of files may be no UTF-8."""
    image, dense, *_ = case
    picture = draw_picture(image, dense, class_names=["background", name, "core"], title=name)
    picture.save(tmp_path / "a.png")
    picture.savefig(tmp_path / "b.png", bbox_inches="tight")
    assert course({name: [{"seconds": 60.0 * n, "loss": 1.0, "dice": 0.5} for n in range(9)]})


@pytest.mark.parametrize("shape", [(1, 9, 9), (40, 5, 7)])
def test_constant_volumes_and_empty_predictions(shape, tmp_path):
    draw_picture(np.zeros(shape), np.zeros(shape, int), np.zeros(shape, int), np.ones(shape)).save(tmp_path / "a.png")
    assert matplotlib.image.imread(tmp_path / "a.png").shape[2] in (3, 4)


@pytest.mark.parametrize(("axis", "left", "right", "down", "up"), [(2, *"LRPA"), (1, *"LRIS"), (0, *"PAIS")])
def test_the_patients_sides_are_marked(axis, left, right, down, up):
    """Of a volume in RAS order, whose first remaining axis goes to the right and whose second goes up."""
    ax = Figure().subplots()
    mark_sides(ax, axis)
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places[left][0] < 0.1 < 0.9 < places[right][0]
    assert places[down][1] < 0.1 < 0.9 < places[up][1]
