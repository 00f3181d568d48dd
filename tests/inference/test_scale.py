"""An image whose voxels are of another order of magnitude than the model's is refused or told: its unit is wrong."""

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from sparse3dunet.errors import DataError
from sparse3dunet.inference.batch import Output, predict_batch
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.predictor import Grid
from sparse3dunet.inference.scale import scale_note
from sparse3dunet.io.volumes import Volume
from tests.conftest import make_volume, write_nifti
from tests.inference.test_large import NAMES, VALUES, predictor, random_network


def image(size, shape=(40, 30, 20)):
    return Volume("scan.nii.gz", np.zeros(shape, np.float32), np.diag([*np.broadcast_to(size, 3), 1.0]))


@pytest.mark.parametrize(
    ("size", "shape", "words"),
    [
        (0.002, (40, 30, 20), "0.002 x 0.002 x 0.002 mm, are 1e[+]03 times smaller"),
        (2000, (40, 30, 20), "2000 x 2000 x 2000 mm, are 1e[+]03 times larger"),
        ((0.001, 0.001, 2), (2000, 2000, 20), "are 159 times smaller"),
    ],
)
def test_other_orders_of_magnitude_are_refused(size, shape, words):
    volume = Volume("scan.nii.gz", np.broadcast_to(np.float32(0), shape), image(size).affine)
    with pytest.raises(DataError, match=rf"scan\.nii\.gz: its voxels, .*{words} .* 2 x 2 x 2 mm; .*--voxel-size"):
        Grid.of(volume, (2, 2, 2))
    Grid.of(volume, None)


@pytest.mark.parametrize(
    ("size", "shape", "spacing"),
    [(0.1, (40, 40, 4), (1, 1, 10)), (0.04, (60, 60, 60), (0.5, 0.5, 5)), ((0.1, 0.1, 10), (40, 40, 1), (1, 1, 10))],
)
def test_small_voxels_of_an_image_that_is_large_enough_along_an_axis_are_predicted(size, shape, spacing):
    volume = image(size, shape)
    assert min(Grid.of(volume, spacing).shape) >= 1
    turned = Volume(volume.path, volume.data.transpose(2, 0, 1), volume.affine[:, [2, 0, 1, 3]])
    assert Grid.of(turned, spacing).shape == Grid.of(volume, spacing).shape, "axes are compared in RAS order"


def test_an_image_smaller_than_half_a_voxel_is_refused():
    expected = (
        "scan.nii.gz: the whole image, 0.5 x 0.5 x 0.9 mm, is smaller than half a voxel .* 2 x 2 x 2 mm, along every"
    )
    with pytest.raises(DataError, match=expected):
        Grid.of(image((0.1, 0.1, 0.3), (5, 5, 3)), (2, 2, 2))
    Grid.of(image((0.1, 0.1, 0.3), (5, 5, 4)), (2, 2, 2))


def test_the_cure_is_that_of_the_file_which_states_no_size():
    with pytest.raises(DataError, match="training that stated no voxel size, train again with it as --voxel-size"):
        Grid.of(image(0.002), (1, 1, 1))
    unknown = Volume("scan.h5", np.zeros((40, 30, 20), np.float32), np.eye(4), has_voxel_size=False)
    with pytest.raises(DataError, match=r"The file states no voxel size: pass it as --voxel-size\.$"):
        Grid.of(unknown, (0.002, 0.002, 0.002))


@pytest.mark.parametrize(("size", "told"), [(2, False), (0.3, False), ((0.5, 0.5, 5), False), (0.2, True), (20, True)])
def test_suspicious_sizes_are_told(size, told):
    volume = image(size)
    assert bool(scale_note(volume, (2, 2, 2))) == told
    assert scale_note(volume, None) == ""
    Grid.of(volume, (2, 2, 2))


def test_a_batch_goes_on(tmp_path, capsys):
    """With the other images, and without a file of the one that is refused."""
    cases = []
    for number, factor in enumerate((1, 0.1, 1000)):
        data = make_volume(number, (20, 22, 18))[0]
        file = write_nifti(tmp_path / f"case_{number}.nii.gz", data, np.diag([*[2.0 * factor] * 3, 1.0]))
        cases.append(ImageCase(f"case_{number}", (str(file),)))
    output = Output(tmp_path / "out", list(NAMES.values()), VALUES, pictures=False)
    outcome = predict_batch(cases, predictor(random_network(), spacing=(2, 2, 2)), output, {})
    assert outcome.done == 2
    assert "case_2.nii.gz: its voxels" in outcome.failed[0]
    assert "1e+03 times larger" in outcome.failed[0]
    assert "case_1.nii.gz: its voxels" in capsys.readouterr().out.replace("\n", " ")
    assert not list((tmp_path / "out").glob("case_2*"))


def test_a_model_of_images_as_they_are_knows_their_voxel_size(tmp_path, capsys):
    """Nothing is resampled, but centimetres for millimetres make volumes a thousand times too large."""
    data = make_volume(0, (20, 22, 18))[0]
    files = [write_nifti(tmp_path / f"{s}.nii.gz", data, np.diag([float(s)] * 3 + [1])) for s in (1, 10, 1000)]
    cases = [ImageCase(f"c{file.name.split('.')[0]}", (str(file),)) for file in files]
    output = Output(tmp_path / "out", list(NAMES.values()), VALUES, pictures=False)
    assert predict_batch(cases, predictor(random_network(), voxel_size=(1, 1, 1.2)), output, {}).done == 3
    told = capsys.readouterr().out.replace("\n", " ")
    for file, is_told in zip(files, (False, True, True)):
        assert (f"{file}: its voxels, " in told) == is_told


@pytest.mark.parametrize("quiet", [False, True])
def test_notes_on_every_image_of_a_batch(tmp_path, capsys, quiet):
    """Of one kind, the first few are printed and the others counted; the summary has them all, also after a resume."""
    data = make_volume(0, (20, 22, 18))[0]
    files = [write_nifti(tmp_path / f"{n}.nii.gz", data, np.diag([0.2 + n / 100] * 3 + [1])) for n in range(5)]
    sitk.WriteImage(sitk.GetImageFromArray(data.T), str(tmp_path / "m.mha"))
    content = (tmp_path / "m.mha").read_bytes()
    slope = b"ElementToIntensityFunctionSlope = 2\nElementType"
    (tmp_path / "m.mha").write_bytes(content.replace(b"ElementType", slope, 1))
    cases = [ImageCase(file.name[0], (str(file),)) for file in (*files, tmp_path / "m.mha")]
    output = Output(tmp_path / "out", list(NAMES.values()), VALUES, pictures=False)
    for _ in range(2):
        outcome = predict_batch(cases, predictor(random_network(), spacing=(2, 2, 2)), output, {}, quiet)
        with (tmp_path / "out/summary.csv").open() as file:
            notes = {row["case"]: row["notes"] for row in csv.DictReader(file)}
        for case in cases[:5]:
            assert f"{case.files[0]}: its voxels, " in notes[case.name]
        assert "ElementToIntensityFunction (slope '2'" in notes["m"]
    assert outcome.skipped == 6
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(lines) == (0 if quiet else 5)
    if not quiet:
        assert sum("times smaller than" in line for line in lines) == 4
        assert sum("m.mha" in line for line in lines) == 1
        assert lines[-1].startswith("note: 2 more image(s) have such a note, see the column notes of summary.csv: ")
