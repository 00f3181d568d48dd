"""Every command takes every format, as image and as annotation, and answers in the same one."""

import json

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import zarr

from sparse3dunet.data.slices import slices_mask
from sparse3dunet.io import read_image
from sparse3dunet.io.itk_snap import read_label_descriptions
from tests.conftest import make_volume, run_sparse3dunet, run_training
from tests.io import microscopy
from tests.io.microscopy import KINDS, SPACING, affine, write

SMALL = ("--network_def#channels", "[4,8,8]", "--largest_patch_size", "[16,16,16]", "--epoch_length", "10")
MAPS = ("--confidence", "--no-pictures")
OUTPUTS = dict(zip(KINDS, (".tif", ".ome.tif", ".ome.zarr", ".ome.zarr", ".h5", ".h5")))


def stem(kind):
    return kind.split(".")[0]


def ok(*arguments):
    result = run_sparse3dunet(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def sparse(dense):
    return np.where(slices_mask(dense.shape, [[5, 14], [6, 12], [5, 11]]), dense, 255).astype(np.uint8)


def write_itk(path, array, spacing=(2.0, 2.0, 2.0)):
    path.parent.mkdir(exist_ok=True)
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


# predict


def test_predict(tmp_path, trained):
    """The voxels of each result are those that NIfTI gives; a second run has nothing left to do."""
    image = make_volume(7)[0]
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(image, affine()), tmp_path / "images/nifti.nii.gz")
    for kind in KINDS:
        write(tmp_path / "images" / kind, image)
    command = ("predict", trained / "models", tmp_path / "images", "-o", tmp_path / "out", *MAPS)
    assert "Segmented 7 volume(s)" in ok(*command)
    expected = {name: nib.load(tmp_path / f"out/nifti_{name}.nii.gz").get_fdata() for name in ("seg", "confidence")}
    assert len(np.unique(expected["seg"])) > 1
    for kind, output in OUTPUTS.items():
        for name, values in expected.items():
            array, spacing, names = microscopy.read(tmp_path / f"out/{stem(kind)}_{name}{output}")
            np.testing.assert_array_equal(array, values)
            np.testing.assert_allclose(spacing, SPACING, rtol=1e-6)
            if name == "seg":
                assert names == {"label_0": "background", "label_1": "shell", "label_2": "core"}
    assert "7 already done" in ok(*command)

    changed = tmp_path / "out/ngff04_seg.ome.zarr"
    zarr.open_group(changed)["0"][0, 0, 0] = 2
    result = run_sparse3dunet(*command, "--overlap", 0.25)
    assert result.returncode == 1
    assert "ngff04_seg.ome.zarr exists and is not what this command wrote there" in result.stderr
    assert zarr.open_group(changed)["0"][0, 0, 0] == 2
    ok(*command, "--overlap", 0.25, "--overwrite")
    np.testing.assert_array_equal(read_image(changed).data.shape, image.shape)
    assert not list((tmp_path / "out").rglob("*.former"))


def test_predict_places_in_files(tmp_path, trained):
    image = make_volume(7)[0]
    path = write(tmp_path / "a_raw.h5", image, None)
    with h5py.File(path, "a") as file:
        file["more/scan"] = image[:, ::-1].T
    printed = ok("predict", trained / "models", f"{path}:/more/scan", "-o", tmp_path / "out", "--no-pictures")
    assert "states no voxel size, so it is taken for 1 mm" in printed
    assert microscopy.read(tmp_path / "out/a_raw_seg.h5")[1] is None
    size = ("--voxel-size", "0.4,0.3,2um")
    printed = ok("predict", trained / "models", f"{path}:/more/scan", "-o", tmp_path / "out", "--no-pictures", *size)
    assert "states no voxel size, so" not in printed
    assert "0.0003 x 0.002 mm, are" in printed  # far from those of the training
    np.testing.assert_allclose(microscopy.read(tmp_path / "out/a_raw_seg.h5")[1], SPACING)


# densify


@pytest.mark.parametrize(
    "kind", [kind if kind == "ngff05.zarr" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_densify(tmp_path, kind):
    image, dense, _ = make_volume(0)
    scan, annotation = write(tmp_path / kind, image), write(tmp_path / f"annotation_{kind}", sparse(dense))
    (tmp_path / "labels.txt").write_text('0 0 0 0 0 0 0 "Clear Label"\n1 9 9 9 1 1 1 "shell"\n2 9 0 9 1 1 1 "core"\n')
    names = ("--class-names", tmp_path / "labels.txt")
    printed = ok("densify", scan, annotation, "-o", tmp_path / "out", "--minutes", 0.03, *SMALL, *names)
    assert "axial 5, 11; coronal 6, 12; sagittal 5, 14" in printed
    for name in ("preview", "seg"):
        array, spacing, found = microscopy.read(tmp_path / f"out/{stem(kind)}_{name}{OUTPUTS[kind]}")
        annotated = sparse(dense) != 255
        np.testing.assert_array_equal(array[annotated], dense[annotated])
        np.testing.assert_allclose(spacing, SPACING, rtol=1e-6)
        assert found == {"label_0": "background", "label_1": "shell", "label_2": "core"}
    assert read_label_descriptions(tmp_path / "out/labels.txt") == {0: "background", 1: "shell", 2: "core"}
    template = tmp_path / f"out/{stem(kind)}_next{OUTPUTS[kind]}"
    if kind != "ngff05.zarr":  # goes on from it; `make test` has no time for that
        ok("densify", scan, template, "-o", tmp_path / "out", "--minutes", 0.03, *SMALL, *names)


def test_densify_takes_an_annotation_in_another_format_or_without_a_voxel_size(tmp_path, error_of):
    """They belong together by their indices; the error of a slip is one line."""
    image, dense, _ = make_volume(0)
    scan = write(tmp_path / "ome.ome.tif", image)
    from sparse3dunet.densify.inputs import prepare_pair

    for name, annotation in (
        ("bare", write(tmp_path / "bare_imagej.tif", sparse(dense), None)),
        ("slicer", write_itk(tmp_path / "slicer.nrrd", sparse(dense), np.array(SPACING) / 1000)),
    ):
        (case,) = json.loads(prepare_pair(scan, annotation, tmp_path / name).read_text())["training"]
        assert case["image"] == str(scan)
        np.testing.assert_array_equal(read_image(case["label"]).data, sparse(dense))
    both = write(tmp_path / "both_raw.h5", image)
    with h5py.File(both, "a") as file:
        file["label"] = sparse(dense).T
    (case,) = json.loads(prepare_pair(both, both, tmp_path / "both").read_text())["training"]
    assert case["label"] == f"{both}:/label"
    other = write(tmp_path / "other_ome.ome.tif", sparse(dense), (9, 9, 9))
    assert "its position in space differs" in error_of("densify", scan, other, "-o", tmp_path / "out")
    for part in (
        write(tmp_path / "part_imagej.tif", sparse(dense)[..., 1:]),
        write_itk(tmp_path / "part.nrrd", sparse(dense)[:, 1:], np.array(SPACING) / 1000),
    ):
        words = "differs from the scan's, (24, 20, 18)"
        assert words in error_of("densify", scan, part, "-o", tmp_path / "out")
    write(tmp_path / "part.h5", sparse(dense))
    assert "expected two files" in error_of("densify", scan, scan, "-o", tmp_path / "out")
    missing = f"{tmp_path / 'part.h5'}:/nothing"
    assert "no dataset nothing" in error_of("densify", scan, missing, "-o", tmp_path / "out")


# check, training, simulate


def make_mixed(root):
    """A datalist of one case in each of several formats: NRRD, MetaImage, TIFF, one HDF5 file, one OME-Zarr folder."""
    root.mkdir(exist_ok=True)
    entries = []
    for number, (image, label) in enumerate(
        [
            ("a.nrrd", "a_seg.seg.nrrd"),
            ("b.mha", "b_seg.nii.gz"),
            ("c_imagej.tif", "c_seg_imagej.tif"),
            ("d.h5", ""),
            ("e_ngff04.zarr", ""),
        ]
    ):
        scan, dense, _ = make_volume(number)
        marked = sparse(dense)
        entry = {"image": image, "label": label or image}
        if image.endswith((".nrrd", ".mha")):
            write_itk(root / image, scan)
        else:
            write(root / image, scan, (500, 500, 500))
        if label.endswith(".nrrd"):
            write_itk(root / label, marked)
        elif label.endswith(".nii.gz"):
            nib.save(nib.Nifti1Image(marked, np.diag([-2.0, -2, 2, 1])), root / label)
        elif label.endswith(".tif"):
            write(root / label, marked, None)
        elif image.endswith(".h5"):
            with h5py.File(root / image, "a") as file:
                file["label"] = marked.T
        else:
            group = zarr.open_group(root / image).create_group("labels/cells")
            microscopy.write_ngff(group, marked.T, "zyx", (500, 500, 500), "4")
        entries.append(entry)
    content = {"training": entries, "labels": {"0": "background", "1": "shell", "2": "core", "255": "ignore"}}
    (root / "datalist.json").write_text(json.dumps(content))
    return root / "datalist.json"


def test_check_and_training(tmp_path):
    datalist = make_mixed(tmp_path / "data")
    report = json.loads(ok("check", datalist, "--json"))
    assert report["ok"]
    result = run_training(datalist, tmp_path, "--spacing", "[1,1,1]")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "models/model.pt").is_file()


def test_folders_of_other_formats(tmp_path):
    """As the plain layout of images/ and labels/; without voxel sizes, a warning says so."""
    for number in range(2):
        scan, dense, _ = make_volume(number)
        for folder, array in (("images", scan), ("labels", sparse(dense))):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / f"case{number}.tif", array.T)
    report = json.loads(ok("check", tmp_path, "--ignore-index", 255, "--json"))
    assert report["ok"]
    assert any("states no voxel size" in text for text in report["warnings"])
    report = json.loads(
        ok("check", tmp_path, "--ignore-index", 255, "--json", "--voxel-size", "1,1,3mm", "--axes", "zyx")
    )
    assert not any("voxel size" in text for text in report["warnings"])


@pytest.mark.parametrize("option", [("--voxel-size", "1,1,3"), ("--axes", "zy")])
def test_options_that_are_wrong(tmp_path, error_of, option):
    assert f"{option[0]} is '{option[1]}'; expected" in error_of("check", tmp_path, *option)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "imagej.tif", "ome.ome.tif", "ngff05.zarr", "label.h5"])
def test_simulate(tmp_path, name):
    dense = make_volume(0)[1]
    if name.startswith("a."):
        write_itk(tmp_path / "dense" / name, dense)
    else:
        (tmp_path / "dense").mkdir()
        write(tmp_path / "dense" / name, dense)
    ok("simulate", tmp_path / "dense", "-o", tmp_path / "sparse", "--slices", "1")
    (path,) = (tmp_path / "sparse").glob("[!.]*")
    found, original = read_image(path), read_image(tmp_path / "dense" / name)
    np.testing.assert_allclose(found.affine, original.affine, rtol=1e-6)
    kept = found.data != 3
    assert 0 < kept.mean() < 0.3
    np.testing.assert_array_equal(found.data[kept], dense[kept])
