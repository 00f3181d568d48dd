"""Doubts about images, before anything is learned from them."""

import numpy as np
import pytest

from sparse3dunet.data.doubts import image_doubts
from sparse3dunet.io.volumes import Volume


@pytest.mark.parametrize(
    ("scale", "offset", "words"),
    [
        (0, 0, "all voxels have the value 0.0"),
        (1e-41, 0, "all voxels have nearly the same value, from 0.0 to 2.9"),
        (1e-30, 0, ""),
        (1, 1e10, "all voxels have nearly the same value, from 10000000000.0 to 10000000029.0"),
        (1e3, 1e10, ""),
    ],
)
def test_images_without_contrast(scale, offset, words):
    """What 32-bit floats cannot tell apart is lost where that is computed with."""
    data = np.linspace(0, 29, 60).reshape(3, 4, 5) * scale + offset
    found = image_doubts(Volume("scan.nii.gz", data, np.eye(4)))
    assert [kind for kind, _ in found] == ["constant"] * bool(words)
    assert all(words in text for _, text in found)
