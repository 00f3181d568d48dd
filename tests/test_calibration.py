"""How sure a network is against how often it is right."""

import pytest
import torch

from sparse3dunet.calibration import TEMPERATURES, best_temperature, expected_counts, likelihoods
from sparse3dunet.metrics import overlap_counts, overlap_scores


def draw(temperature, seed=0, voxels=40_000):
    """Logits (3, N), and labels that come about by them at a temperature."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, voxels, generator=generator)
    prob = torch.softmax(logits / temperature, 0)
    return logits, torch.multinomial(prob.T, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_is_found_and_its_promise_is_kept(temperature):
    logits, labels = draw(temperature)
    parts = [likelihoods(logits[:, part], labels[part]) for part in (slice(0, 9_000), slice(9_000, None))]
    found = TEMPERATURES[best_temperature(parts)]
    assert found == pytest.approx(temperature, rel=0.1)
    true = overlap_counts(logits.argmax(0)[None, None], labels[None, None], 3)[0]
    promised = expected_counts(logits, found)
    for kind in ("dice", "iou"):
        torch.testing.assert_close(overlap_scores(promised, kind), overlap_scores(true, kind), rtol=0, atol=0.01)
    torch.testing.assert_close(promised.sum(), true.double().sum(), rtol=0.05, atol=0)


def test_without_a_voxel_nothing_is_promised():
    assert not expected_counts(torch.zeros(3, 0), 1.0).any()
    assert likelihoods(torch.zeros(3, 0), torch.zeros(0)) == [0.0] * len(TEMPERATURES)
