"""Images larger than memory: the same voxels as in memory, written in chunks, and continued where they were stopped."""

import errno
import json

import h5py
import numpy as np
import pytest
import torch
import zarr

from sparse3dunet.data.large_annotation import LargeAnnotation
from sparse3dunet.data.large_conventions import LargeConvention
from sparse3dunet.data.moments import channel_moments, channels_of
from sparse3dunet.errors import DataError
from sparse3dunet.inference import large, records
from sparse3dunet.inference.batch import Output, predict_batch
from sparse3dunet.inference.inputs import ImageCase
from sparse3dunet.inference.large import STATE, Progress, predict_large
from sparse3dunet.inference.predictor import Predictor, Scratch, ZScore
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.io import chunked_results, ome_zarr, read_image
from sparse3dunet.io.chunked_results import ChunkedResult
from sparse3dunet.io.defaults import VOLUME_MEMORY
from sparse3dunet.io.formats import open_image
from sparse3dunet.networks import UNet3D
from sparse3dunet.progress import BatchProgress
from tests.conftest import run_sparse3dunet
from tests.io.microscopy import voxels, write

WINDOW = (16, 12, 12)
VALUES, NAMES = [0, 5, 300], {0: "background", 5: "a", 300: "b"}
SHAPE = (34, 20, 18)
KIND_NAMES = {"segmentation": "a_seg.ome.zarr", "confidence": "a_confidence.ome.zarr"}


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Chunks of 8 voxels and strips of a few, so that a small volume has many."""
    for module in (large, ome_zarr, chunked_results):
        monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(chunked_results, "COPIED", 16)
    monkeypatch.setattr(chunked_results, "SMALLEST_LEVEL", 16)
    monkeypatch.setattr(ome_zarr, "SMALLEST_LEVEL", 16)
    monkeypatch.setattr(large, "BLEND", 80_000)


def random_network(in_channels=1, **options):
    torch.manual_seed(4)
    network = UNet3D(in_channels, 3, **{"channels": (2, 4), "norm": "instance", "padding": "same", **options}).eval()
    with torch.no_grad():  # else one class may be everywhere
        network.head.bias -= network(torch.randn(1, in_channels, 20, 20, 20)).mean((0, 2, 3, 4))
    return network


@pytest.fixture(scope="module")
def network():
    return random_network()


@pytest.fixture
def image(tmp_path):
    return write(tmp_path / "ngff04.ome.zarr", voxels(SHAPE, high=200))


def predictor(network, **options):
    inferer = SlabInferer(WINDOW, 0.5, bfloat16=False, on_window=options.pop("on_window", None))
    return Predictor(network, inferer, VALUES, **{"confidence": True, **options})


def in_memory(network, image, **options):
    """Normalised by the voxels as they are stored, also if they are resampled."""
    stored = ZScore.by(*channel_moments(channels_of(read_image(image).data), str(image)))
    with Scratch() as scratch, pytest.MonkeyPatch.context() as context:
        context.setattr(ZScore, "by", lambda *arguments: stored)
        return predictor(network, **options)([read_image(image)], scratch)


def in_parts(network, image, drafts, names=KIND_NAMES, **options):
    drafts.mkdir(exist_ok=True)
    result = predict_large(predictor(network, **options), [open_image(image)], drafts, names, NAMES, "key")
    result.finish()
    return result


def check(found, expected, drafts, names=KIND_NAMES):
    for kind, name in names.items():
        atol = 1e-6 if kind == "probabilities" else 0  # a softmax is rounded as its place in memory has it
        np.testing.assert_allclose(read_image(drafts / name).data, getattr(expected, kind), rtol=0, atol=atol)
    assert found.voxels == expected.voxels
    assert np.count_nonzero(found.voxels) > 1, "a result of one class shows little"
    assert found.mean_confidence == pytest.approx(expected.mean_confidence)


@pytest.mark.parametrize("spacing", [None, (0.0006, 0.0004, 0.0017)])
@pytest.mark.parametrize("shape", [(34, 20, 18), (18, 40, 14), (9, 5, 30)], ids=["x", "y", "z"])
def test_the_same_voxels_as_in_memory(network, tmp_path, shape, spacing):
    """Rows along each axis, of which y is stored the other way round; and windows larger than the volume."""
    image = write(tmp_path / "ngff05.ome.zarr", voxels(shape, high=200))
    found = in_parts(network, image, tmp_path / "drafts", spacing=spacing)
    check(found, in_memory(network, image, spacing=spacing), tmp_path / "drafts")


def test_an_absolute_scale_channels_and_probabilities(tmp_path):
    network = random_network(2)
    image = write(tmp_path / "ngff04.ome.zarr", voxels((*SHAPE, 2), high=200))
    intensity = {"lower": 10.0, "upper": 150.0, "mean": 80.0, "std": 30.0}
    names = {**KIND_NAMES, "probabilities": "a_prob.ome.zarr"}
    options = {"intensity": intensity, "num_channels": 2, "probabilities": True}
    found = in_parts(network, image, tmp_path / "drafts", names, **options)
    check(found, in_memory(network, image, **options), tmp_path / "drafts", names)


def test_valid_convolutions(tmp_path):
    network = random_network(norm="batch", padding="valid")
    image = write(tmp_path / "ngff04.ome.zarr", voxels(SHAPE, high=200))
    options = {"inferer": SlabInferer((28, 24, 24), bfloat16=False), "class_values": VALUES, "confidence": True}
    with Scratch() as scratch:
        expected = Predictor(network, **options)([read_image(image)], scratch)
    (tmp_path / "drafts").mkdir()
    found = predict_large(
        Predictor(network, **options), [open_image(image)], tmp_path / "drafts", KIND_NAMES, NAMES, ""
    )
    found.finish()
    check(found, expected, tmp_path / "drafts")


def annotation_of(path, ignored=(255,), slices=None, weight=None):
    return LargeAnnotation(open_image(path), weight, LargeConvention(ignored, slices), "digest")


@pytest.mark.parametrize("stops", [False, True])
def test_annotated_voxels_keep_their_class(network, image, tmp_path, stops):
    """As in the file's order; with a confidence of 1, and counted as what they are, also if a run is continued."""
    label = np.where(voxels(SHAPE, high=3, seed=1) > 0, 255, np.array(VALUES)[voxels(SHAPE, high=3, seed=2)])
    file = write(tmp_path / "label_ngff04.ome.zarr", label.astype(np.int16))
    drafts, plain = tmp_path / "drafts", in_memory(network, image)
    drafts.mkdir()

    def stop(done, total):
        if done == total // 2:
            raise Stop

    def run(**options):
        volumes = [open_image(image)]
        return predict_large(predictor(network, **options), volumes, drafts, KIND_NAMES, NAMES, "", annotation_of(file))

    if stops:
        with pytest.raises(Stop):
            run(on_window=stop)
        assert Progress.read(drafts, "").row > 0
    found = run()
    found.finish()
    segmentation, confidence = (read_image(drafts / name).data for name in KIND_NAMES.values())
    annotated = label != 255
    assert 0.2 < annotated.mean() < 0.5
    np.testing.assert_array_equal(segmentation, np.where(annotated, label, plain.segmentation))
    np.testing.assert_array_equal(confidence, np.where(annotated, 255, plain.confidence))
    assert found.voxels == [int((segmentation == value).sum()) for value in VALUES]
    assert found.mean_confidence == pytest.approx(confidence[segmentation > 0].mean() / 255, abs=2e-3)


def test_only_what_is_annotated_is_kept(network, image, tmp_path):
    """Slices and a weight say so, beside values."""
    file = write(tmp_path / "label_ngff04.ome.zarr", np.full(SHAPE, 5, np.int16))
    weight = open_image(write(tmp_path / "weight_ngff04.ome.zarr", (voxels(SHAPE) > 1).astype(np.uint8)))
    kept = annotation_of(file, (), [[], [3, 17], []], weight)
    (tmp_path / "drafts").mkdir()
    found = predict_large(
        predictor(network), [open_image(image)], tmp_path / "drafts", KIND_NAMES, NAMES, "", annotation=kept
    )
    annotated = np.zeros(SHAPE, bool)
    annotated[:, [3, 17]] = weight.data[:, :, :][:, [3, 17]] > 0
    expected = np.where(annotated, 5, in_memory(network, image).segmentation)
    np.testing.assert_array_equal(found.segmentation[:, :, :], expected)
    unknown = annotation_of(write(tmp_path / "odd_ngff04.ome.zarr", np.full(SHAPE, 7, np.int16)))
    with pytest.raises(DataError, match=r"odd_ngff04.*value\(s\) 7 are none of the model's classes: 0, 5, 300"):
        predict_large(
            predictor(network), [open_image(image)], tmp_path / "drafts", KIND_NAMES, NAMES, "other", annotation=unknown
        )


def test_hdf5(network, tmp_path):
    image = write(tmp_path / "ilastik.h5", voxels(SHAPE, high=200))
    names = {"segmentation": "a_seg.h5", "confidence": "a_confidence.h5"}
    found = in_parts(network, image, tmp_path / "drafts", names)
    check(found, in_memory(network, image), tmp_path / "drafts", names)
    with h5py.File(tmp_path / "drafts/a_seg.h5") as file:
        assert json.loads(file["label"].attrs["labels"]) == {"0": "background", "5": "a", "300": "b"}
        np.testing.assert_allclose(file["label"].attrs["element_size_um"], [2, 0.3, 0.4], rtol=1e-6)


def test_the_pyramid_and_its_metadata_are_those_of_the_whole(network, image, tmp_path):
    in_parts(network, image, tmp_path / "drafts")
    (tmp_path / "drafts" / STATE).unlink()
    (tmp_path / "drafts" / KIND_NAMES["segmentation"] / "other").mkdir()
    found = in_parts(network, image, tmp_path / "drafts")  # what is there is replaced
    assert not (found.files[0].path / "other").exists()
    voxels = read_image(tmp_path / "drafts" / KIND_NAMES["segmentation"]).data
    ome_zarr.write_ome_zarr(tmp_path / "whole.ome.zarr", voxels, read_image(image), NAMES)
    one, other = (zarr.open_group(p, mode="r") for p in (tmp_path / "whole.ome.zarr", found.files[0].path))
    assert dict(one.attrs) == dict(other.attrs)
    assert sorted(one.array_keys()) == sorted(other.array_keys()) == ["0", "1", "2"]
    for name in "012":
        np.testing.assert_array_equal(one[name][:], other[name][:])


@pytest.mark.parametrize("spacing", [None, (0.0006, 0.0004, 0.0017)])
def test_a_stopped_run_goes_on_where_it_was(network, tmp_path, spacing):
    """Stopped again and again, at any window; little is computed twice, and nothing differs in the end."""
    image = write(tmp_path / "ngff04.ome.zarr", voxels((70 if spacing is None else 130, 14, 12), high=200))
    expected, windows, drafts = in_memory(network, image, spacing=spacing), [], tmp_path / "drafts"
    in_parts(network, image, tmp_path / "whole", spacing=spacing, on_window=lambda done, total: windows.append(total))
    places, seen = [], []

    def stop(done, total):
        seen.append(done)
        if len(seen) % (len(windows) * 45 // 100) == 0:
            raise Stop

    for _ in range(9):
        try:
            found = in_parts(network, image, drafts, spacing=spacing, on_window=stop)
            break
        except Stop:
            progress = Progress.read(drafts, "key")
            places.append((progress.strip, progress.row))
    check(found, expected, drafts)
    assert places == sorted(places)
    assert len(set(places)) > 1
    assert len(seen) < 2.5 * len(windows)


def test_what_was_written_is_not_computed_again(network, image, tmp_path):
    """A done slab that was changed on disk stays changed, unless the progress is of other settings."""
    drafts, count = tmp_path / "drafts", []

    def stop(done, total):
        count.append(done)
        if done == 2 * total // 3:
            raise Stop

    with pytest.raises(Stop):
        in_parts(network, image, drafts, on_window=stop)
    assert Progress.read(drafts, "key").row > 0
    assert Progress.read(drafts, "another key") is None
    array = zarr.open_array(drafts / KIND_NAMES["segmentation"] / "0", mode="r+")
    array[0, -1, 0] = 299
    in_parts(network, image, drafts)
    assert (read_image(drafts / KIND_NAMES["segmentation"]).data == 299).sum() == 1
    (drafts / STATE).write_text("{damaged")
    assert Progress.read(drafts, "key") is None


@pytest.mark.parametrize("place", ["write", "finish", "move"])
def test_what_was_written_is_kept_when_the_disk_is_full(network, image, tmp_path, monkeypatch, place):
    """The next run computes only the rest, and the result is the same."""
    out, windows, calls = tmp_path / "out", [], []
    owner, name = (records, "move") if place == "move" else (ChunkedResult, place)
    works = getattr(owner, name)

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == (13 if place == "write" else 2):
            raise OSError(errno.ENOSPC, "No space left on device")
        return works(*arguments)

    def predict():
        windows.clear()
        cases, output = [ImageCase("ngff04", (str(image),))], Output(out, list(NAMES.values()), VALUES, pictures=False)
        with monkeypatch.context() as context:
            context.setattr(BatchProgress, "windows", lambda self, done, total: windows.append(done))
            outcome = predict_batch(cases, predictor(network), output, {}, quiet=True)
        return outcome, windows[:1]

    monkeypatch.setenv(VOLUME_MEMORY, "0")
    monkeypatch.setattr(owner, name, full)
    outcome, _ = predict()
    assert "No space left on device" in outcome.failed[0]
    monkeypatch.setattr(owner, name, works)
    outcome, first_window = predict()
    assert not outcome.failed
    assert first_window > [2] if place == "write" else not first_window
    expected = in_memory(network, image)
    for kind in ("segmentation", "confidence"):
        file = out / f"ngff04_{'seg' if kind == 'segmentation' else kind}.ome.zarr"
        np.testing.assert_array_equal(read_image(file).data, getattr(expected, kind))
    assert not (out / ".drafts").exists()


def test_settings_that_need_the_whole_volume(network, image, tmp_path):
    for options, what in (({"largest": [1]}, "--largest"), ({"min_ml": {1: 2.0}}, "--min-ml")):
        with pytest.raises(DataError, match=rf"{what} need.* the whole volume in memory"):
            in_parts(network, image, tmp_path / "drafts", **options)
    with pytest.raises(DataError, match=r"a_seg\.nii\.gz: this format is written as a whole.*--format ome\.zarr"):
        in_parts(network, image, tmp_path / "drafts", {"segmentation": "a_seg.nii.gz", "confidence": "a.ome.zarr"})


def test_resampling_that_does_not_fit_into_memory(network, image, tmp_path, monkeypatch):
    """Refused with the figures before anything is read; without resampling, the same memory is enough."""
    monkeypatch.setattr(large, "machine_memory", lambda: 2**17)
    message = r"voxel size, 0\.0006 x .* takes about \S+ GiB of memory, more than the 0\.000122 GiB .* Convert"
    with pytest.raises(DataError, match=message):
        in_parts(network, image, tmp_path / "drafts", spacing=(0.0006, 0.0004, 0.0017), on_window=pytest.fail)
    in_parts(network, image, tmp_path / "drafts")


def test_nan_is_found_before_anything_is_predicted(network, tmp_path):
    array = voxels(SHAPE, np.float32)
    array[20, 10, 15] = np.nan
    image = write(tmp_path / "ngff04.ome.zarr", array)
    with pytest.raises(DataError, match=r"ngff04\.ome\.zarr: some voxels are NaN"):
        in_parts(network, image, tmp_path / "drafts", on_window=pytest.fail)


def test_the_command(trained, tmp_path):
    """The same result with and without memory, told in a line; a picture of each; nothing left over."""
    image = write(tmp_path / "ngff04.ome.zarr", voxels((40, 30, 20), high=200))
    for name, limit in (("whole", "1GiB"), ("parts", "0")):
        arguments = ("-o", tmp_path / name, "--confidence", "--volume-memory", limit)
        result = run_sparse3dunet("predict", trained / "models", image, *arguments)
        assert result.returncode == 0, result.stderr
        assert ("40 x 30 x 20 voxels" in result.stdout and "read chunk by chunk" in result.stdout) == (limit == "0")
    for kind in ("seg", "confidence"):
        one, other = (read_image(tmp_path / name / f"ngff04_{kind}.ome.zarr") for name in ("whole", "parts"))
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.affine, other.affine)
    one, other = (tmp_path / name / "pictures/ngff04.png" for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    assert not (tmp_path / "parts/.drafts").exists()
    again = run_sparse3dunet("predict", trained / "models", image, "-o", tmp_path / "parts", "--confidence")
    assert "1 already done" in again.stdout
    assert VOLUME_MEMORY not in again.stdout
    bad = run_sparse3dunet("predict", trained / "models", image, "-o", tmp_path / "x", "--volume-memory", "much")
    assert bad.returncode == 1
    assert "--volume-memory is 'much'; expected a size such as 8GiB" in bad.stderr
