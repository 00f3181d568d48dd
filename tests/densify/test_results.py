"""The results of a densification: what the network sees when they are made."""

import os

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.data.slices import find_slices
from sparse3dunet.densify.estimate import corrected
from sparse3dunet.densify.inputs import prepare_pair
from sparse3dunet.densify.propagated import Outlook, distance_of
from sparse3dunet.densify.results import Results
from sparse3dunet.densify.state import State
from sparse3dunet.errors import DataError
from sparse3dunet.io import write_segmentation
from sparse3dunet.io.volumes import read_volume
from sparse3dunet.models.description import describe_model
from sparse3dunet.models.loading import Model
from sparse3dunet.models.normalization import normalizer
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import Propagated
from tests.conftest import make_dataset, make_volume, write_nifti

SEEN = []


class Spy(torch.nn.Module):
    """Says that all is of class 1, and keeps what it saw."""

    def forward(self, x):
        SEEN.append(x)
        return torch.nn.functional.one_hot(torch.ones(x.shape[0], *x.shape[2:], dtype=int), 3).movedim(-1, 1) * 20.0


def even(results):
    """All classes with the same probability."""
    shape = results.annotation(results.cases[0].files[0]).numbers.shape
    return Propagated(np.full((3, *shape), 1 / 3, np.float32), tuple(slice(0, n) for n in shape), None, "")


@pytest.mark.parametrize("kind", ["usual", "own", "none"])
def test_the_network_sees_what_it_learned_from(tmp_path, kind):
    """A normalisation of the config's is applied to the images that results are made of, too."""
    data_set = read_data_set(make_dataset(tmp_path / "data", 1))
    scale = {"a_min": -3e4, "a_max": -1e4, "b_min": 3, "b_max": 4}
    usual = NormalizeIntensityd("image", channel_wise=True)
    transforms = {"usual": [usual], "own": [ScaleIntensityRanged("image", **scale)], "none": []}[kind]
    results = Results(tmp_path / "out", data_set, None, keep_annotation=False)
    SEEN.clear()
    model = Model(Spy(), describe_model(Spy(), data_set, [16] * 3), "", "")
    outlook = Outlook(even(results), Calibration(), share=1.0)
    results.predict(model, lambda name: outlook, "cpu", normalizer(transforms))
    image = read_volume(results.cases[0].files[0]).data.astype(np.float32)
    highest = {"usual": (image.max() - image.mean()) / image.std(), "own": (image.max() + 3e4) / 2e4 + 3}
    seen = max(float(x.max()) for x in SEEN)
    assert seen == pytest.approx(float(highest.get(kind, image.max())), rel=1e-3)


def test_a_network_that_agrees_confirms_less_than_it_seems_to(tmp_path):
    """It learned what it agrees with: the expected Dice rises half as far as by its probabilities."""
    data_set = read_data_set(make_dataset(tmp_path / "data", 1))
    results = Results(tmp_path / "out", data_set, None, keep_annotation=False)
    model = Model(Spy(), describe_model(Spy(), data_set, [16] * 3), "", "")
    unsure = even(results)
    unsure.prob[:] = np.array([0.25, 0.6, 0.15], np.float32)[:, None, None, None]
    name, dice = results.cases[0].name, {}
    for share in (0.0, 1.0):
        outlook = Outlook(unsure, Calibration(), share)
        dice[share] = results.predict(model, lambda name, outlook=outlook: outlook, "cpu", normalizer([]))[name].dice[1]
    annotated = results.annotation(results.cases[0].files[0]).annotated
    sure = np.zeros((3, *annotated.shape), np.float32)
    sure[1] = 1
    both = Outlook(unsure, Calibration(), 1.0).prob(distance_of(annotated, (1, 1, 1)), sure)
    alone, together = (corrected(2 * p / (1 + p), find_slices(annotated)) for p in (0.6, both[1].mean()))
    assert dice[0.0] == pytest.approx(alone, abs=1e-3)
    assert dice[1.0] == pytest.approx((alone + together) / 2, abs=1e-3)
    assert together > alone + 0.1


def test_two_volumes_have_no_result_in_common(tmp_path):
    """The preview of x is named as the segmentation of x_preview in this format: told before anything is computed."""
    data = make_dataset(tmp_path / "data", 2)
    for number, name in enumerate(("x", "x_preview")):
        (data / f"imagesTr/case_{number}.nii.gz").rename(data / f"imagesTr/{name}.nii.gz")
    listed = (data / "dataset.json").read_text().replace("imagesTr/case_0", "imagesTr/x")
    (data / "dataset.json").write_text(listed.replace("imagesTr/case_1", "imagesTr/x_preview"))
    data_set = read_data_set(data)
    with pytest.raises(DataError, match=r"volumes x and x_preview would both have the result x_preview\.seg\.nrrd"):
        Results(tmp_path / "out", data_set, "seg.nrrd", keep_annotation=True).check(None)
    Results(tmp_path / "out", data_set, "nii.gz", keep_annotation=True).check(None)


class Killed(Exception):
    """Raised where a process is killed."""


@pytest.mark.parametrize("at", [1, 2])
def test_a_preview_is_known_wherever_the_run_was_killed(tmp_path, at):
    """And one that was edited since is not replaced, whether the run was killed or not."""
    results = Results(tmp_path / "out", read_data_set(make_dataset(tmp_path / "data", 1)), None, keep_annotation=False)
    (case,), found = results.cases, even(results)
    state = State("digest", previews={})
    results.write_preview(case, found, state.previews, lambda: None)
    path = results.preview(case)
    first = path.read_bytes()
    found.prob[2] = 1
    calls = []

    def keep():
        calls.append(dict(state.previews))
        if len(calls) == at:
            raise Killed

    with pytest.raises(Killed):
        results.write_preview(case, found, state.previews, keep)
    assert (path.read_bytes() == first) == (at == 1)
    killed = State("digest", previews=calls[-1])
    results.check(killed)
    results.write_preview(case, found, killed.previews, lambda: None)
    results.check(killed)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for complete in (False, True):
        with pytest.raises(DataError, match=r"case_0_preview\.nii\.gz exists and is not what a former run wrote there"):
            results.check(State("digest", previews=killed.previews, complete=complete))
    edited = path.read_bytes()
    results.check(State(""))  # the state is damaged: nobody knows
    results.write_preview(case, found, {}, lambda: None)
    assert (tmp_path / "out/case_0_preview_before.nii.gz").read_bytes() == edited
    assert path.read_bytes() != edited


@pytest.mark.parametrize("format", ["nii.gz", "nrrd"])
def test_no_result_replaces_what_is_read(tmp_path, format):
    """It would be scored by itself, or be learned; a template is for this, and a segmentation is not replaced."""
    image, dense, sparse = make_volume(0)
    scan = write_nifti(tmp_path / "scan.nii.gz", image)
    out, state = tmp_path / "out", State("a")

    def check(annotation, reference):
        data = prepare_pair(scan, annotation, out / "work/inputs", reference=reference, ignore_index=3)
        Results(out, read_data_set(data), format, keep_annotation=True).check(state)

    data_set = read_data_set(prepare_pair(scan, write_nifti(tmp_path / "a.nii.gz", sparse), out / "work/inputs"))
    results = Results(out, data_set, format, keep_annotation=True)
    (case,) = results.cases
    made = results.files(case) | {"preview": results.preview(case)}
    labels = {"preview": sparse, "segmentation": dense, "confidence": dense}
    for kind, path in made.items():
        write_segmentation(path, labels[kind], read_volume(scan), {0: "background", 1: "class 1", 2: "class 2"})
    for kind, path in made.items():
        with pytest.raises(DataError, match=rf"{path}: the dense label of scan is the {kind} {path.name} in"):
            check(tmp_path / "a.nii.gz", path)
    with pytest.raises(DataError, match=r"the annotation of scan is the preview"):
        check(made["preview"], None)
    os.symlink(made["segmentation"], tmp_path / f"link.{format}")
    with pytest.raises(DataError, match=r"the dense label of scan is the segmentation"):
        check(tmp_path / "a.nii.gz", tmp_path / f"link.{format}")
    for path in made.values():
        path.unlink()
    template = write_nifti(out / "scan_next.nii.gz", sparse)
    check(template, write_nifti(tmp_path / "dense.nii.gz", dense))
