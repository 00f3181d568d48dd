"""The results of a densification: what the network sees when they are made."""

import numpy as np
import pytest
import torch
from monai.transforms import NormalizeIntensityd, ScaleIntensityRanged

from sparse3dunet.data.datalist import read_data_set
from sparse3dunet.densify.propagated import Outlook
from sparse3dunet.densify.results import Results
from sparse3dunet.errors import DataError
from sparse3dunet.io.volumes import read_volume
from sparse3dunet.models.description import describe_model
from sparse3dunet.models.loading import Model
from sparse3dunet.models.normalization import normalizer
from sparse3dunet.propagation.calibration import Calibration
from sparse3dunet.propagation.ensemble import Propagated
from tests.conftest import make_dataset

SEEN = []


class Spy(torch.nn.Module):
    """Says that all is of class 1, and keeps what it saw."""

    def forward(self, x):
        SEEN.append(x)
        return torch.nn.functional.one_hot(torch.ones(x.shape[0], *x.shape[2:], dtype=int), 3).movedim(-1, 1) * 20.0


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
    case = results.cases[0]
    shape = results.annotation(case.files[0]).numbers.shape
    even = Propagated(np.full((3, *shape), 1 / 3, np.float32), tuple(slice(0, n) for n in shape), None, "")
    outlook = Outlook(even, Calibration(), share=1.0)
    results.predict(model, lambda name: outlook, "cpu", normalizer(transforms))
    image = read_volume(case.files[0]).data.astype(np.float32)
    highest = {"usual": (image.max() - image.mean()) / image.std(), "own": (image.max() + 3e4) / 2e4 + 3}
    seen = max(float(x.max()) for x in SEEN)
    assert seen == pytest.approx(float(highest.get(kind, image.max())), rel=1e-3)


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
