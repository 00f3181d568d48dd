"""All scores by class: on which voxels, from what reference, and why one is missing."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from sparse3dunet.losses.target import pack_target
from sparse3dunet.metrics import measure, slice_distances, summarize, surface_distances
from sparse3dunet.report.scores import scores_table, write_scores

SPACING = (0.7, 1.1, 3.0)
TOLERANCES = (9.0, 1.0, 2.0)
NAMES = ("background", "shell", "core")


def example(seed=0, shape=(24, 20, 16)):
    """A segmentation and a dense label of three classes, (1, X, Y, Z)."""
    random = np.random.default_rng(seed)
    first, second = (gaussian_filter(random.normal(size=shape), 2) for _ in range(2))
    pred, true = (
        sum((part > level).astype(np.int64) for level in (0.02, 0.06)) for part in (first, first + second / 3)
    )
    return torch.from_numpy(pred)[None], torch.from_numpy(true)[None]


def slices_of(shape):
    weight = torch.zeros((1, *shape))
    weight[:, 9] = weight[:, :, :, 4] = weight[:, :, :, 5] = 1
    return weight


def target_of(label, weight, looked_for=None):
    mask = None if looked_for is None else torch.tensor([looked_for])
    return pack_target(label[None], weight[None], mask)[0]


def scored(*arguments, **options):
    return measure(*arguments, 3, SPACING, tolerances=TOLERANCES, **options)


def test_dense_scores_are_those_of_simpleitk():
    pred, true = example()
    found = scored(pred, true)
    for number, one in enumerate(found):
        images = [sitk.GetImageFromArray((array[0] == number).numpy().astype(np.uint8)) for array in (true, pred)]
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*images)
        assert one.dice == pytest.approx(overlap.GetDiceCoefficient(1))
        assert one.iou == pytest.approx(overlap.GetJaccardCoefficient(1))
        volumes = [float((array == number).sum()) * 0.7 * 1.1 * 3 / 1000 for array in (true, pred)]
        assert (one.reference_ml, one.predicted_ml) == pytest.approx(volumes)
        assert one.volume_difference_ml == pytest.approx(volumes[1] - volumes[0])
        assert one.volume_difference_percent == pytest.approx(100 * (volumes[1] / volumes[0] - 1))
    for number in (1, 2):
        expected = surface_distances((pred[0] == number).numpy(), (true[0] == number).numpy(), SPACING)
        one = found[number]
        assert (one.hd95_mm, one.assd_mm) == (expected.hd95, expected.average)
        assert one.nsd == expected.surface_dice(TOLERANCES[number])
        assert (one.surfaces, one.nsd_tolerance_mm, one.note) == ("3D", TOLERANCES[number], "")
    assert (found[0].hd95_mm, found[0].note) == (None, ""), "the background has no surface of its own"


def test_sparse_scores_are_those_within_the_annotated_slices():
    pred, true = example()
    found = scored(pred, target_of(true, slices_of(true.shape[1:])))
    for number in (1, 2):
        masks = [(array[0] == number).numpy() for array in (pred, true)]
        expected = slice_distances(*masks, SPACING, [[9], [], [4, 5]])
        assert (found[number].hd95_mm, found[number].assd_mm) == (expected.hd95, expected.average)
        assert found[number].surfaces == "2D"


@pytest.mark.parametrize("kind", ["slices", "scribbles"])
def test_unlabeled_voxels_have_no_say(kind):
    pred, true = example()
    weight = slices_of(true.shape[1:])
    if kind == "scribbles":
        weight[:, 3, 3] = 0
        weight[:, :, :, 4:6] = 0
    before = scored(pred, target_of(true, weight))
    changed, label = torch.where(weight > 0, pred, 2), torch.where(weight > 0, true, 255)
    assert scored(changed, target_of(label, weight)) == before
    assert [one.surfaces for one in before[1:]] == (["2D", "2D"] if kind == "slices" else ["", ""])
    if kind == "scribbles":
        assert [one.note for one in before[1:]] == ["no whole annotated slice shows it"] * 2
        assert all(one.dice is not None and one.nsd is None for one in before[1:])


def test_unlabeled_voxels_by_a_dense_reference():
    """The surfaces are those of the whole volume: annotated slices cut no holes into them."""
    pred, true = example()
    weight = slices_of(true.shape[1:])
    found = scored(pred, target_of(true, weight == 0), reference=true)
    for number in (1, 2):
        masks = [(array[0] == number).numpy() for array in (pred, true)]
        expected = surface_distances(*masks, SPACING, (weight[0] == 0).numpy())
        assert (found[number].hd95_mm, found[number].assd_mm) == (expected.hd95, expected.average)
        assert found[number].voxels == int((masks[1] & (weight[0] == 0).numpy()).sum())
        assert found[number].surfaces == "3D"
    perfect = scored(true, target_of(true, weight == 0), reference=true)
    assert [(one.hd95_mm, one.assd_mm, one.nsd) for one in perfect[1:]] == [(0, 0, 1)] * 2


def test_absent_missed_and_invented_classes():
    pred, true = example()
    without = [torch.where(array == 2, 1, array) for array in (pred, true)]
    missed = scored(without[0], true)[2]
    assert (missed.dice, missed.nsd, missed.hd95_mm, missed.assd_mm) == (0, 0, None, None)
    assert (missed.volume_difference_percent, missed.unmatched_percent, missed.note) == (-100, 100, "not predicted")
    invented = scored(pred, without[1])[2]
    assert (invented.dice, invented.nsd, invented.hd95_mm, invented.volume_difference_percent) == (None,) * 4
    assert invented.volume_difference_ml == invented.predicted_ml > 0
    assert invented.note == "not in the reference, but predicted"
    absent = scored(*without)[2]
    assert (absent.dice, absent.volume_difference_ml, absent.note) == (None, 0, "not in the reference")


def test_classes_that_were_not_looked_for():
    pred, true = example()
    label = torch.where(true == 2, 0, true)
    found = scored(pred, target_of(label, torch.ones_like(label), [True, True, False]))
    assert found[2].note == "was not looked for"
    assert (found[2].dice, found[2].predicted_ml, found[2].hd95_mm) == (None, None, None)
    same = scored(torch.where(pred == 2, 0, pred), label)
    assert found[:2] == same[:2], "it counts as background where it is predicted"


def test_regions():
    pred, true = example()
    regions = {"whole": [1, 2], "inside": [2]}
    found = scored(pred, target_of(true, slices_of(true.shape[1:])), regions=regions)
    masks = [(array[0] > 0).numpy() for array in (pred, true)]
    assert found[1].assd_mm == slice_distances(*masks, SPACING, [[9], [], [4, 5]]).average
    assert found[2].assd_mm == scored(pred, target_of(true, slices_of(true.shape[1:])))[2].assd_mm


def test_without_tolerances_no_distances():
    pred, true = example()
    found = measure(pred, true, 3, SPACING)
    assert all(one.dice is not None and one.volume_difference_percent is not None for one in found)
    assert all((one.hd95_mm, one.nsd, one.surfaces, one.note) == (None, None, "", "") for one in found)


def test_classes_out_of_range():
    pred, true = example()
    weight = slices_of(true.shape[1:])
    with pytest.raises(ValueError, match="outside of 0"):
        scored(torch.where(weight > 0, pred, 7), target_of(true, weight))
    with pytest.raises(ValueError, match="outside of 0"):
        scored(torch.where(weight > 0, pred, 2**16), target_of(true, weight))


def test_classes_are_whole_numbers_also_where_voxels_are_not_scored():
    """The surfaces are there as well."""
    pred, true = example()
    weight = slices_of(true.shape[1:])
    odd, fractional = (torch.where(weight > 0, array.float(), 0.9) for array in (pred, true))
    with pytest.raises(ValueError, match=r"value 0\.9; expected classes"):
        scored(odd, target_of(true, weight))
    with pytest.raises(ValueError, match=r"has label 0\.9; expected class numbers"):
        scored(pred, target_of(true, weight), reference=fractional)


@pytest.fixture
def scores():
    """Scores of two volumes; the second does not show the core, which is predicted there."""
    pred, true = example()
    second = torch.where(true == 2, 1, true)
    return {"annotated": {"a": scored(pred, true), "b [x], y": scored(pred, second)}, "unlabeled": {}, "all": {}}


def test_tables_that_spreadsheets_read(scores, tmp_path):
    write_scores(tmp_path, scores, NAMES)
    assert b"\r" not in (tmp_path / "scores.csv").read_bytes() + (tmp_path / "scores_summary.csv").read_bytes()
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["case"], row["region"], row["class"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    row, one = rows["a", "annotated", "core"], scores["annotated"]["a"][2]
    for name in ("dice", "hd95_mm", "assd_mm", "nsd", "volume_difference_ml", "volume_difference_percent"):
        assert float(row[name]) == pytest.approx(getattr(one, name), rel=1e-5)
    assert int(row["voxels"]) == one.voxels
    assert (row["surfaces"], row["nsd_tolerance_mm"]) == ("3D", "2")
    row = rows["b [x], y", "annotated", "core"]
    assert (row["dice"], row["hd95_mm"], row["note"]) == ("", "", "not in the reference, but predicted")
    with (tmp_path / "scores_summary.csv").open(newline="", encoding="utf-8") as file:
        summary = {(row["class"], row["score"]): row for row in csv.DictReader(file)}
    row = summary["core", "hd95_mm"]
    assert (row["cases"], row["missed"], row["spurious"], row["n"]) == ("1", "0", "1", "1")
    assert float(row["mean"]) == float(row["median"]) == pytest.approx(one.hd95_mm, rel=1e-5)
    both = [measures[1].assd_mm for measures in scores["annotated"].values()]
    assert float(summary["shell", "assd_mm"]["mean"]) == pytest.approx(np.mean(both), rel=1e-5)
    assert float(summary["shell", "assd_mm"]["median"]) == pytest.approx(np.median(both), rel=1e-5)


def test_names_are_no_formulas_in_tables(scores, tmp_path):
    """While numbers stay numbers, also negative ones."""
    scores["annotated"]["=1+1"] = scores["annotated"].pop("a")
    write_scores(tmp_path, scores, ("background", "=SUM(1)", "@core"))
    tables = []
    for name in ("scores.csv", "scores_summary.csv"):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    cells = {cell for table in tables for row in table for cell in row.values()}
    assert {"'=1+1", "'=SUM(1)", "'@core"} <= cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
    differences = [one.volume_difference_ml for one in scores["annotated"]["=1+1"]]
    assert min(differences) < 0
    found = [float(row["volume_difference_ml"]) for row in tables[0] if row["case"] == "'=1+1"]
    assert found == pytest.approx(differences, rel=1e-5)


def test_summaries_leave_out_what_is_not_defined():
    pred, true = example()
    missed, found = scored(torch.where(pred == 2, 1, pred), true)[2], scored(pred, true)[2]
    distances = summarize([missed, found], "hd95_mm")
    assert (distances.mean, distances.n) == (found.hd95_mm, 1)
    overlap = summarize([missed, found], "dice")
    assert (overlap.mean, overlap.n) == (pytest.approx(found.dice / 2), 2)
    assert summarize([], "dice").mean is None


def test_the_table_tells_what_means_leave_out(scores, capsys):
    from rich.console import Console

    pred, true = example()
    scores["annotated"]["c"] = scored(torch.where(pred == 2, 1, pred), true)
    Console(width=80).print(scores_table("Scores", scores, NAMES))
    text = " ".join(capsys.readouterr().out.split())
    assert "1 shown, but not predicted, 1 predicted, but not shown" in text
    assert "nan" not in text


@pytest.mark.parametrize("tolerances", [[-1] * 3, [1, 2], [1, 2, np.nan], 2])
def test_tolerances_are_one_length_for_each_class(tolerances):
    label = torch.zeros(1, 6, 6, 6, dtype=torch.long)
    with pytest.raises(ValueError, match="tolerances must be 3 numbers of at least 0"):
        measure(label, target_of(label, torch.ones(1, 6, 6, 6)), 3, SPACING, tolerances=tolerances)
