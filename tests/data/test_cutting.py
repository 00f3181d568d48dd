"""Volumes larger than memory are cut into parts: each annotated voxel is in one of them, normalised as the whole."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from sparse3dunet.data import checks, cutting, set_conventions
from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.large import open_large
from sparse3dunet.data.names import case_name
from sparse3dunet.data.splits import MOST_PARTS, split_cases
from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.defaults import VOLUME_MEMORY, VOXEL_SIZE, parse_bytes, set_defaults
from sparse3dunet.io.formats import opened_once
from sparse3dunet.io.monai_reader import VolumeReader
from sparse3dunet.io.parts import split_part
from sparse3dunet.io.writing import write_map
from sparse3dunet.keys import ANNOTATED_SLICES, IMAGE, LABEL, MOMENTS, WEIGHT
from sparse3dunet.transforms import NormalizeImaged, SparseLabel
from tests.conftest import TINY, run_sparse3dunet
from tests.io.microscopy import voxels, write

SHAPE = (60, 50, 40)
UNLABELED, DENSE = 9, np.random.default_rng(1).integers(1, 4, SHAPE).astype(np.uint8)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cutting, "CELL", 16)
    monkeypatch.setattr(cutting, "MARGIN", 5)
    monkeypatch.setenv(VOLUME_MEMORY, "0")


def scribbles():
    """Some lines and a block that crosses cells, 9 elsewhere."""
    label = np.full(SHAPE, UNLABELED, np.uint8)
    for box in (np.s_[3, 4:40, 7], np.s_[50:56, 20:36, 30:33], np.s_[20, 20, 20]):
        label[box] = DENSE[box]
    return label


def on_slices(others=0):
    label = np.full(SHAPE, others, np.uint8)
    label[:, :, [5, 17, 18]] = DENSE[:, :, [5, 17, 18]] - (others == 0)
    return label


def with_holes():
    label = on_slices()
    label[10:20, 30:45, 17] = UNLABELED
    return label


def datalist(tmp_path, label, suffix="ngff04.ome.zarr", weight=None, **declared) -> Path:
    entry = {"image": f"image_{suffix}", "label": f"label_{suffix}"}
    write(tmp_path / entry["image"], voxels(SHAPE, high=200))
    write(tmp_path / entry["label"], label)
    if weight is not None:
        entry["weight"] = f"weight_{suffix}"
        write(tmp_path / entry["weight"], weight)
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"training": [entry], **declared}))
    return path


def of_case(case, data_set):
    """Class numbers and weights of a case, (X, Y, Z)."""
    split = SparseLabel(data_set.class_values, data_set.ignore_index)
    weight = checks.as_tensor(read_image(case[WEIGHT])) if WEIGHT in case else None
    found = split(checks.as_tensor(read_image(case[LABEL])), weight, case.get(ANNOTATED_SLICES))
    return [np.asarray(values[0]) for values in found]


CASES = {
    "a value": (scribbles(), {"ignore_index": UNLABELED}),
    "listed slices": (on_slices(), {"annotated_slices": {"axial": [5, 17], "sagittal": [30]}}),
    "slices of a plane": (on_slices(), {"annotated_slices": "axial"}),
    "slices and a value": (with_holes(), {"annotated_slices": {"2": [17, 30]}, "ignore_index": UNLABELED}),
    "0": (on_slices(), {"ignore_index": 0}),
}


@pytest.mark.parametrize("suffix", ["ngff05.ome.zarr", "ilastik.h5"])
@pytest.mark.parametrize("name", CASES)
def test_each_annotated_voxel_is_in_one_part(tmp_path, monkeypatch, name, suffix):
    label, declared = CASES[name]
    path = datalist(tmp_path, label, suffix, **declared)
    parts = checks.complete(read_data_set(path))
    monkeypatch.setenv(VOLUME_MEMORY, "1GiB")
    whole = checks.complete(read_data_set(path))
    assert len(parts.cases) > 2
    assert len(whole.cases) == 1
    assert set(whole.class_values) == set(parts.class_values)
    classes, weights = of_case(whole.cases[0], whole)
    counts, found = np.zeros(SHAPE, int), np.zeros(SHAPE, int)
    for case in parts.cases:
        box = split_part(case[IMAGE])[1].box
        numbers, weight = of_case(case, parts)
        np.testing.assert_array_equal(read_image(case[IMAGE]).data, read_image(whole.cases[0][IMAGE]).data[box])
        counts[box] += weight > 0
        found[box][weight > 0] = np.array(parts.class_values)[numbers[weight > 0]]
        around = [(max(ends[0] - 5, 0), min(ends[-1] + 6, n)) for ends, n in zip(_ends(weight > 0, box), SHAPE)]
        assert [(along.start, along.stop) for along in box] == around
    np.testing.assert_array_equal(counts, weights > 0)
    np.testing.assert_array_equal(found[weights > 0], np.array(whole.class_values)[classes[weights > 0]])
    assert len({case_name(case) for case in parts.cases}) == len(parts.cases)
    report = checks.check_data(parts)
    assert report.class_counts == np.bincount(classes[weights > 0], minlength=len(whole.class_values)).tolist()


def _ends(mask, box):
    for axis, along in enumerate(box):
        yield np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) + along.start


def test_a_weight_image(tmp_path):
    weight = np.zeros(SHAPE, np.float32)
    weight[10:14, 33, 21:25] = 0.5
    parts = checks.complete(read_data_set(datalist(tmp_path, DENSE, weight=weight)))
    weights = [of_case(case, parts)[1] for case in parts.cases]
    assert sum(found.sum() for found in weights) == weight.sum()
    assert {float(found.max()) for found in weights} == {0.5}


def test_a_part_is_normalised_as_the_whole(tmp_path):
    (case, *_) = checks.complete(read_data_set(datalist(tmp_path, scribbles(), ignore_index=UNLABELED))).cases
    assert np.ravel(case[MOMENTS]) == pytest.approx([voxels(SHAPE, high=200).mean(), voxels(SHAPE, high=200).std()])
    path, part = split_part(case[IMAGE])
    reader = VolumeReader()
    tensors = [torch.tensor(reader.get_data([name])[0][None], dtype=torch.float32) for name in (path, case[IMAGE])]
    whole = NormalizeImaged()({IMAGE: tensors[0]})[IMAGE][(slice(None), *part.box)]
    found = NormalizeImaged()({IMAGE: tensors[1], MOMENTS: case[MOMENTS]})
    torch.testing.assert_close(found[IMAGE], whole)
    assert MOMENTS not in found
    absolute = NormalizeImaged(intensity={"lower": 0, "upper": 200, "mean": 90, "std": 40})
    torch.testing.assert_close(absolute({IMAGE: tensors[1], MOMENTS: case[MOMENTS]})[IMAGE], (tensors[1] - 90) / 40)


@pytest.mark.parametrize("label", [on_slices(), on_slices(4) % 4, on_slices(255)], ids=["all", "0", "255"])
def test_inferring_what_is_unlabeled_as_in_memory(tmp_path, monkeypatch, capsys, label):
    path = datalist(tmp_path, label)
    parts = set_conventions.complete(read_data_set(path))
    assert "This was inferred" in capsys.readouterr().out
    monkeypatch.setenv(VOLUME_MEMORY, "1GiB")
    whole = set_conventions.complete(read_data_set(path))
    assert parts.class_values == whole.class_values
    counts = [checks.check_data(data_set).class_counts for data_set in (parts, whole)]
    assert counts[0] == counts[1]


def test_as_many_parts_as_allowed_and_every_class(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cutting, "MOST_PARTS", 4)
    label = np.full(SHAPE, 1, np.uint8)
    label[55, 45, 35] = 2
    parts = checks.complete(read_data_set(datalist(tmp_path, label, ignore_index=UNLABELED)))
    assert parts.class_values == [1, 2]
    assert 4 <= len(parts.cases) <= 5
    assert "of 48 taken evenly" in capsys.readouterr().out


def test_what_cannot_be_cut(tmp_path):
    path = datalist(tmp_path, np.full(SHAPE, UNLABELED, np.uint8), ignore_index=UNLABELED)
    with pytest.raises(DataError, match=r"label_ngff04\.ome\.zarr: no voxel is annotated.*Annotate at least one slice"):
        checks.complete(read_data_set(path))
    (tmp_path / "all").mkdir()
    with pytest.raises(DataError, match=r"annotated_slices is 'all', which needs the whole volume"):
        checks.complete(read_data_set(datalist(tmp_path / "all", on_slices(), annotated_slices="all")))
    (tmp_path / "word").mkdir()
    with pytest.raises(DataError, match=r"annotated_slices is 'finished', which needs .* expected one plane"):
        checks.complete(read_data_set(datalist(tmp_path / "word", on_slices(), annotated_slices="finished")))
    (tmp_path / "undecided").mkdir()
    with pytest.raises(DataError, match=r"cannot infer which voxels are unlabeled, of the values 1, 2, 3"):
        set_conventions.complete(read_data_set(datalist(tmp_path / "undecided", DENSE)))
    write_map(tmp_path / "label.nii.gz", np.zeros(SHAPE, np.uint8), read_image(tmp_path / "image_ngff04.ome.zarr"))
    path.write_text(json.dumps({"training": [{"image": "image_ngff04.ome.zarr", "label": "label.nii.gz"}]}))
    with pytest.raises(DataError, match=r"label\.nii\.gz: the label of .* expected OME-Zarr or HDF5"):
        checks.complete(read_data_set(path))
    write(tmp_path / "small_ngff04.ome.zarr", np.zeros((9, 9, 9), np.uint8))
    path.write_text(json.dumps({"training": [{"image": "image_ngff04.ome.zarr", "label": "small_ngff04.ome.zarr"}]}))
    with pytest.raises(DataError, match=r"small_ngff04\.ome\.zarr: shape \(9, 9, 9\) differs from the image's"):
        checks.complete(read_data_set(path))


def test_few_parts_are_validated(tmp_path):
    path = datalist(tmp_path, np.ones(SHAPE, np.uint8), ignore_index=UNLABELED, labels={"0": "a", "1": "b"})
    cases = checks.complete(read_data_set(path)).cases
    assert len(cases) == 48
    for fraction in (0.5, 0):
        training, validation = split_cases(cases, fraction)
        assert len(validation) == MOST_PARTS
        assert len(training) == (48 if fraction == 0 else 40)


def volumes(tmp_path, monkeypatch, *labels, **declared):
    """Data set of volumes a, b, ..., the first of which are large: those whose label has the shape SHAPE."""
    entries = []
    for name, label in zip("abcd", labels):
        write(tmp_path / f"{name}_ngff04.ome.zarr", voxels(label.shape, high=200))
        write(tmp_path / f"{name}label_ngff04.ome.zarr", label)
        entries.append({"image": f"{name}_ngff04.ome.zarr", "label": f"{name}label_ngff04.ome.zarr"})
    validation = declared.pop("validation", [])
    training = [entry for entry in entries if entry["image"][0] not in validation]
    listed = {"training": training, "validation": [entry for entry in entries if entry not in training]}
    (tmp_path / "data.json").write_text(json.dumps({**listed, **declared}))
    monkeypatch.setenv(VOLUME_MEMORY, "1MB")
    return read_data_set(tmp_path / "data.json")


def of_volumes(cases):
    return {case_name(case)[0] for case in cases}


def test_volumes_are_held_out_as_a_whole(tmp_path, monkeypatch):
    """By the data set's declaration, by a file that names them, and at random; and few parts of each are scored."""
    labels = [scribbles(), scribbles(), np.ones(SHAPE, np.uint8)]
    data_set = checks.complete(
        volumes(
            tmp_path,
            monkeypatch,
            *labels,
            ignore_index=UNLABELED,
            validation="c",
            labels={"background": 1, "y": 2, "z": 3},
        )
    )
    split = split_cases(data_set.cases, 0.2, 0, None, data_set.validation)
    assert [of_volumes(part) for part in split] == [{"a", "b"}, {"c"}]
    assert len(split[1]) == MOST_PARTS
    (tmp_path / "split.json").write_text(json.dumps({"train": ["b_ngff04", "c_ngff04"], "val": ["a_ngff04"]}))
    split = split_cases(data_set.cases, split_file=tmp_path / "split.json")
    assert [of_volumes(part) for part in split] == [{"b", "c"}, {"a"}]
    for seed in range(4):
        training, validation = split_cases(data_set.cases, 0.4, seed)
        assert len(of_volumes(training)) == 2
        assert len(of_volumes(validation)) == 1
        assert not of_volumes(training) & of_volumes(validation)


def test_a_class_of_another_volume_is_never_taken_for_unlabeled(tmp_path, monkeypatch):
    """The large volume shows fewer classes; its parts read as unlabeled outside of their cells."""
    large, small = np.zeros(SHAPE, np.uint8), np.zeros((12, 12, 12), np.uint8)
    large[10:30, 10:30, 7], small[3:6, 3:9, 4], small[7:9, 3:9, 4] = 1, 1, 2
    data_set = checks.complete(volumes(tmp_path, monkeypatch, large, small, annotated_slices="axial"))
    assert data_set.class_values == [0, 1, 2]
    counts = checks.check_data(data_set).class_counts
    assert counts == [SHAPE[0] * SHAPE[1] - 400 + 144 - 30, 400 + 18, 12]


def test_zero_means_unlabeled_in_all_volumes_or_none(tmp_path, monkeypatch):
    """Inferred in one, it would drop the background of the others."""
    whole, dense = on_slices(4) % 4, np.random.default_rng(3).integers(0, 4, (12, 12, 12)).astype(np.uint8)
    background = np.zeros(SHAPE, np.uint8)
    background[5:55, 5:45, 7] = 1
    for number, labels in enumerate(((whole, background), (whole, dense), (background, whole[:20, :20, :20]))):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(DataError, match=r"different ways: 0 means unlabeled in \S+ and not in \S+\. Mark them"):
            set_conventions.complete(volumes(tmp_path / str(number), monkeypatch, *labels))
    data_set = set_conventions.complete(volumes(tmp_path, monkeypatch, whole, whole[:20, :20, :20]))
    assert data_set.ignore_index == (0,)
    assert data_set.class_values == [1, 2, 3]


def test_what_is_large(tmp_path, monkeypatch, capsys):
    path = str(write(tmp_path / "ngff04.ome.zarr", voxels((16, 16, 16))))
    for text, expected in (("64KiB", None), ("0.0655 MB", 1), ("65535", 1), ("0", 1)):
        set_defaults(volume_memory=text)
        assert (open_large(path) is None) == (expected is None)
    assert capsys.readouterr().out.count("16 x 16 x 16 voxels would take about") == 1
    for text in ("", "8 bananas", "-1", "GiB"):
        with pytest.raises(DataError, match="expected a size such as 8GiB"):
            parse_bytes(text)
    monkeypatch.delenv(VOLUME_MEMORY)
    assert open_large(path) is None
    assert open_large(str(tmp_path / "missing.ome.zarr")) is None


@pytest.mark.parametrize("name", ["a.h5", "a.zarr"])
def test_a_shape_without_content_is_no_image(tmp_path, name):
    """A file of 1 KB may state 1e13 voxels, one chunk of which is written."""
    shape, options = (100_000, 100_000, 1000), {"dtype": "u1", "chunks": (64, 64, 64)}
    if name == "a.h5":
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("raw", shape=shape, **options)[:64, :64, :64] = 1
    else:
        zarr.create_array(str(tmp_path / name), shape=shape, **options)[:64, :64, :64] = 1
    with pytest.raises(DataError, match=r"1000 x 100000 x 100000 voxels, of which \d+ bytes are on disk; expected"):
        open_large(str(tmp_path / name))


def test_checking(tmp_path):
    """Each part is a case of the report."""
    path = datalist(tmp_path, scribbles(), ignore_index=UNLABELED)
    result = run_sparse3dunet("check", path, "--json", "--volume-memory", "0")
    assert result.returncode == 0, result.stderr
    cases = json.loads(result.stdout[result.stdout.index("{") :])["cases"]
    assert sum(case["annotated"] for case in cases) == (scribbles() != UNLABELED).sum()
    assert cases
    assert all(case["name"].startswith("image_ngff04_part_") for case in cases)


@pytest.mark.slow
def test_training_and_prediction(tmp_path):
    """Trained on in parts; the model then predicts the volume in parts."""
    path, limit = datalist(tmp_path, scribbles(), ignore_index=UNLABELED), ("--volume-memory", "0")
    places = ("--dataset_dir", path, "--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    result = run_sparse3dunet("run", "training", *places, *TINY, *limit)
    assert result.returncode == 0, result.stderr
    assert "read in parts around its annotation: " in result.stdout
    names = json.loads((tmp_path / "models/model.json").read_text())["training"]
    assert names
    assert all(name.startswith("image_ngff04_part_") for name in names)
    image, out = tmp_path / "image_ngff04.ome.zarr", tmp_path / "out"
    result = run_sparse3dunet("predict", tmp_path / "models", image, "-o", out, *limit)
    assert result.returncode == 0, result.stderr
    assert read_image(out / "image_ngff04_seg.ome.zarr").spatial_shape == SHAPE


def test_volumes_stay_open_until_they_change(tmp_path, monkeypatch):
    """For their parts: many volumes at once; anew with another voxel size, or when their metadata changed."""
    paths = [write(tmp_path / f"{i}_ngff04.ome.zarr", voxels((4, 4, 4)), spacing=None) for i in range(12)]
    paths.append(write(tmp_path / "12_ilastik.h5", voxels((4, 4, 4)), spacing=None))
    opened = [opened_once(path) for path in paths]
    assert all(one is other for one, other in zip(opened, map(opened_once, paths), strict=True))
    monkeypatch.setenv(VOXEL_SIZE, "2,2,3mm")
    assert opened_once(paths[0]).spacing == (2, 2, 3)
    assert opened_once(paths[-1]).spacing == (2, 2, 3)
    monkeypatch.delenv(VOXEL_SIZE)
    assert opened_once(paths[0]) is opened[0]
    metadata = paths[0] / ".zattrs"
    metadata.write_text(metadata.read_text() + "\n")
    assert opened_once(paths[0]) is not opened[0]


def test_json_alone_is_printed(tmp_path):
    """Also of volumes of which something is told when they are read in parts."""
    result = run_sparse3dunet("check", datalist(tmp_path, on_slices()), "--json", "--volume-memory", "0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["ok"]
    assert "it is read chunk by chunk" in result.stderr
