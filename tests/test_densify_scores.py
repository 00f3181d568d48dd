"""The numbers that an estimate is made of, counted by hand."""

import pytest
import torch
from monai.inferers import Inferer

from sparse3dunet.calibration import TEMPERATURES
from sparse3dunet.densify.network import Scorer

SLICE = [[1], [], []]


class OwnLogits(Inferer):
    """The image is the prediction: class 1 where it is 1, with logits that are the class twice over."""

    def __call__(self, inputs, network, *args, **kwargs):
        return torch.cat([2 * (1 - inputs), 2 * inputs], dim=1)


def item(label, image, annotated):
    """(1, 3, 2, 2) volumes, of which each slice across the first axis has one value."""
    rows = {"image": image, "label": label, "weight": annotated}
    return {
        key: torch.tensor(row, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 2, 2) for key, row in rows.items()
    }


VOLUMES = {
    "a": item(label=[1, 1, 0], image=[1, 0, 1], annotated=[1, 1, 0]),
    "b": item(label=[0, 1, 1], image=[0, 1, 1], annotated=[1, 1, 1]),
}


@pytest.fixture
def scorer():
    cases = [{"image": f"/x/{name}.nii.gz"} for name in VOLUMES]

    def load(case):
        name = case["image"][3:4]
        volume = {key: value.clone() for key, value in VOLUMES[name].items()}
        return {**volume, "image": _meta(volume["image"], case["image"])}

    return Scorer(cases, 2, "cpu", load, OwnLogits())


def _meta(image, file):
    from monai.data import MetaTensor

    return MetaTensor(image, meta={"filename_or_obj": file})


def test_a_fold_counts_held_out_slices_and_the_others_apart(scorer):
    found = scorer.fold(torch.nn.Identity(), {"a": SLICE})
    assert list(found.held_out) == list(found.learned) == ["a"]
    assert found.held_out["a"].tolist() == [[0, 4, 0], [0, 0, 4]]  # slice 1: class 1 is taken for class 0
    assert found.learned["a"].tolist() == [[0, 0, 0], [4, 0, 0]]  # slice 0
    assert found.showing == [0, 1]
    sure = torch.sigmoid(torch.tensor(2.0 / TEMPERATURES[7])).item()
    assert found.promised["a"][7, 0].tolist() == pytest.approx([4 * sure, 4 - 4 * sure, 0], abs=1e-4)
    assert len(found.likelihoods) == len(TEMPERATURES)
    assert found.likelihoods[7] == pytest.approx(-4 * torch.tensor(1 - sure).log().item(), rel=1e-4)


def test_the_final_model_promises_only_what_nobody_annotated(scorer):
    found = scorer.final(torch.nn.Identity(), 1.0)
    assert found.learned["a"].tolist() == [[0, 4, 0], [4, 0, 4]]
    assert found.learned["b"].tolist() == [[4, 0, 0], [8, 0, 0]]
    assert list(found.promised) == ["a"]  # of b every voxel is annotated
    sure = torch.sigmoid(torch.tensor(2.0)).item()
    assert found.promised["a"][1].tolist() == pytest.approx([4 * sure, 4 - 4 * sure, 0], abs=1e-4)
