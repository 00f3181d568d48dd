"""From an image to its segmentation: equal to the bundle's chain of MONAI's transforms, with arrays on disk, too."""

import re

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Invertd, NormalizeIntensity, Orientationd

from sparse3dunet.errors import DataError
from sparse3dunet.inference.predictor import Predictor, Scratch, most_probable
from sparse3dunet.inference.resizing import resize_linear
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.inference.windows import cut
from sparse3dunet.io.volumes import Volume
from sparse3dunet.transforms import ExtentSpacing, ExtentSpacingd, NormalizeImaged
from tests.inference.test_inferers import oblique, permuted
from tests.inference.test_large import random_network

WINDOW = (24, 16, 20)
VALUES = [0, 5, 300]


@pytest.fixture(scope="module")
def network():
    return random_network(2, channels=(4, 8))


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).normal(100, 50, (41, 33, 26, 2)).astype(np.int16)


def predictor(network, **options):
    inferer = SlabInferer(WINDOW, 0.5, bfloat16=False)
    return Predictor(network, inferer, **{"class_values": VALUES, "num_channels": 2, **options})


def chain(network, data, affine, spacing, intensity=None):
    """What the bundle's preprocessing, MONAI's inferer and the bundle's postprocessing make of it."""
    resample = [ExtentSpacingd("image", pixdim=spacing)] if spacing else []
    normalize = [NormalizeImaged("image", intensity)]
    preprocess = Compose([Orientationd("image", "RAS", labels=None), *resample, *normalize])
    image = MetaTensor(torch.from_numpy(data).permute(3, 0, 1, 2).float(), affine=torch.from_numpy(affine))
    case = preprocess({"image": image})
    inferer = SlidingWindowInferer(WINDOW, 1, 0.5, mode="gaussian", padding_mode="replicate")
    with torch.no_grad():
        logits = inferer(case["image"][None], network)[0]
    case["pred"] = MetaTensor(logits, meta=case["image"].meta)
    case["pred"].applied_operations = case["image"].applied_operations
    back = Invertd("pred", preprocess, orig_keys="image", nearest_interp=False)(case)["pred"]
    return np.array(VALUES)[back.argmax(0).numpy()]


@pytest.mark.parametrize("in_memory", [2**30, 0])
@pytest.mark.parametrize("spacing", [None, (1.3, 0.9, 1.7)])
@pytest.mark.parametrize("affine", [np.eye(4), oblique(), permuted()], ids=["straight", "oblique", "permuted"])
def test_equals_the_bundles_transforms(network, data, affine, spacing, in_memory, tmp_path):
    with Scratch(tmp_path, in_memory) as scratch:
        options = {"spacing": spacing, "confidence": True, "probabilities": True}
        found = predictor(network, **options)([Volume("x", data, affine)], scratch)
        assert np.array_equal(found.segmentation, chain(network, data, affine, spacing))
        assert found.segmentation.dtype == np.int16
        assert isinstance(found.segmentation, np.memmap) == (in_memory == 0)
        assert found.voxels == [int((found.segmentation == value).sum()) for value in VALUES]
        assert found.probabilities.shape == (41, 33, 26, 3)
        assert np.abs(found.probabilities.sum(-1) - 1).max() < 1e-5
        assert np.array_equal(np.array(VALUES)[found.probabilities.argmax(-1)], found.segmentation)
        best = found.probabilities.max(-1)
        assert np.abs(found.confidence - 255 * best).max() <= 0.5 + 1e-4
        assert found.mean_confidence == pytest.approx(best[found.segmentation > 0].mean(), abs=1e-5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spacing", [None, (1.3, 0.9, 1.7)])
def test_an_absolute_scale(network, data, spacing):
    intensity = {"lower": 60, "upper": 170.5, "mean": 103.2, "std": 41.7}
    affine = permuted()
    with Scratch() as scratch:
        found = predictor(network, spacing=spacing, intensity=intensity)([Volume("a", data, affine)], scratch)
    expected = chain(network, data, affine, spacing, intensity)
    assert (found.segmentation == expected).mean() > 0.9999
    assert (found.segmentation != chain(network, data, affine, spacing)).mean() > 0.01


@pytest.mark.parametrize(
    "change", [lambda a: a / 1000.0, lambda a: a + 4096, lambda a: a * 0], ids=["0 to 1", "+", "0"]
)
def test_an_image_that_is_not_on_the_models_scale(network, data, change):
    intensity = {"lower": 60, "upper": 170.5, "mean": 103.2, "std": 41.7}
    image = Volume("scan", change(data).astype(np.float32), np.eye(4))
    with (
        Scratch() as scratch,
        pytest.raises(DataError, match=r"scan: its intensities.*60 to 170\.5; expected Hounsfield"),
    ):
        predictor(network, intensity=intensity)([image], scratch)


def test_channels_in_files_of_their_own(network, data):
    volumes = [Volume(str(i), data[..., i], np.eye(4)) for i in range(2)]
    with Scratch() as scratch:
        apart = predictor(network)(volumes, scratch).segmentation
        together = predictor(network)([Volume("x", data, np.eye(4))], scratch).segmentation
    assert np.array_equal(apart, together)


def test_another_normalisation(network, data):
    normalize = lambda image: (image - 100) / 50  # noqa: E731
    with Scratch() as scratch:
        found = predictor(network, normalize=normalize)([Volume("x", data, np.eye(4))], scratch).segmentation
        shifted = predictor(network, normalize=normalize)([Volume("x", data + 200, np.eye(4))], scratch).segmentation
    assert not np.array_equal(found, shifted)


def test_odd_images(network, data):
    """Constant ones, and of a single slice; what cannot be segmented is told with the image's name."""
    with Scratch() as scratch:
        for shape in ((20, 20, 1), (1, 1, 1)):
            image = Volume("x", np.full((*shape, 2), 7, np.uint8), np.eye(4))
            assert predictor(network, confidence=True)([image], scratch).segmentation.shape == shape
        for bad in (np.nan, np.inf, 1e300):
            image = data.astype(np.float64)
            image[3, 4, 5, 1] = bad
            words = (
                "are too large to compute with in 32-bit floats, such as 1e[+]300" if bad == 1e300 else "are NaN or inf"
            )
            with pytest.raises(DataError, match=rf"case.nii: some voxels {words}"):
                predictor(network)([Volume("case.nii", image, np.eye(4))], scratch)
        with pytest.raises(DataError, match=r"expected a 3D image with 2 channel"):
            predictor(network)([Volume("x", data[..., 0], np.eye(4))], scratch)


def test_small_components_go(network, data):
    with Scratch() as scratch:
        image = Volume("x", data, np.diag([10.0, 10, 10, 1]))
        cleaned = predictor(network, largest=[1], min_ml={2: 1e6})([image], scratch)
    assert cleaned.voxels[2] == 0
    assert cleaned.voxels[1] == (cleaned.segmentation == 5).sum() > 0
    assert sum(cleaned.voxels) == cleaned.segmentation.size


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_most_probable(classes):
    logits = torch.randn(classes, 5, 6, 7)
    logits[:, 0] = logits[:1, 0]  # all equal: the first
    numbers, confidence = most_probable(logits)
    assert torch.equal(numbers.long(), logits.argmax(0))
    assert not numbers[0].any()
    torch.testing.assert_close(confidence, logits.softmax(0).max(0).values)


@pytest.mark.parametrize("pixdim", [(1.3, 0.7, 2.2), (0.3, 0.4, 1), (3.3, 1, 1)])
def test_resize_linear_is_extent_spacing(pixdim, tmp_path):
    source = np.random.default_rng(0).normal(size=(40, 23, 31)).astype(np.float32)
    expected = ExtentSpacing(pixdim)(MetaTensor(torch.from_numpy(source)[None], affine=torch.eye(4)))[0].numpy()
    target = np.memmap(tmp_path / "a", np.float32, "w+", shape=expected.shape, order="F")
    assert np.abs(resize_linear(np.asfortranarray(source), target) - expected).max() < 1e-4


@pytest.mark.parametrize(("border", "mode"), [("replicate", "edge"), ("mirror", "reflect")])
def test_cut_is_padding(border, mode):
    """Equal to NumPy's, also where it is longer than the volume, in views of any order."""
    volume = np.random.default_rng(0).integers(0, 99, (9, 12, 5)).astype(np.int16)
    pad = 14
    padded = np.pad(volume, pad, mode)
    for view, reference in [
        (volume, padded),
        (np.asfortranarray(volume), padded),
        (nib.apply_orientation(volume, [[2, -1], [0, 1], [1, -1]]), None),
    ]:
        reference = np.pad(view, pad, mode) if reference is None else reference
        for bounds in ([(-14, 3), (2, 9), (4, 19)], [(0, 5), (0, 5), (0, 5)], [(3, 9), (-7, 20), (-1, 6)]):
            found = cut([view, view + 1], bounds, border)
            bounds = [(a, min(b, n + pad)) for (a, b), n in zip(bounds, view.shape)]
            box = tuple(slice(a + pad, b + pad) for a, b in bounds)
            assert np.array_equal(found[0][tuple(slice(b - a) for a, b in bounds)], reference[box])
            assert np.array_equal(found[1], found[0] + 1)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0, 1, 255], np.uint8),
        ([-1000, -3, 7], np.int16),
        ([0, 1, 2**15], np.int32),
        ([0, -(2**31) - 1, 1], np.int64),
    ],
)
def test_class_values(network, data, values, dtype):
    """In the smallest type that holds them."""
    with Scratch() as scratch:
        image = [Volume("x", data, permuted())]
        found = predictor(network, class_values=values)(image, scratch)
        numbers = predictor(network, class_values=[0, 1, 2])(image, scratch).segmentation
    assert found.segmentation.dtype == dtype
    assert np.array_equal(found.segmentation, np.array(values)[numbers])
    assert found.voxels == np.bincount(numbers.ravel(), minlength=3).tolist()


@pytest.mark.parametrize("affine", [oblique(), permuted()], ids=["oblique", "permuted"])
def test_channels_of_their_own_are_resampled_alike(network, data, affine):
    volumes = [Volume(str(i), np.asfortranarray(data[..., i]), affine) for i in range(2)]
    with Scratch() as scratch:
        found = predictor(network, spacing=(1.3, 0.9, 1.7))(volumes, scratch).segmentation
    assert np.array_equal(found, chain(network, data, affine, (1.3, 0.9, 1.7)))


def test_the_same_normalisation_from_outside(network, data):
    normalize = NormalizeIntensity(channel_wise=True)
    with Scratch() as scratch:
        for spacing in (None, (1.3, 0.9, 1.7)):
            image = [Volume("x", data, permuted())]
            expected = predictor(network, spacing=spacing)(image, scratch).segmentation
            found = predictor(network, spacing=spacing, normalize=normalize)(image, scratch).segmentation
            assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a * 0 + 0.1, "its voxels have a single value, 0.1;"),
        (lambda a: a + 1e12, "its contrast, a standard deviation of .* around 1e[+]12, is lost in 32-bit floats;"),
        (lambda a: a * 1e-200, "its values, .*e-199 on average, are too small for 32-bit floats;"),
        (lambda a: a * 1e-6 + 1, None),
        (lambda a: a * 1e30, None),
        (lambda a: a.astype(np.float16), None),
    ],
)
@pytest.mark.parametrize("options", [{}, {"spacing": (1.3, 0.9, 1.7)}], ids=["as it is", "resampled"])
def test_an_image_without_contrast_for_a_network_is_told(network, data, options, change, words):
    """Its result would be that of any other image."""
    image = data.astype(np.float64)
    image[..., 1] = change(image[..., 1])
    with Scratch() as scratch:
        notes = predictor(network, **options)([Volume("case.nii", image, np.eye(4))], scratch).notes
    assert len(notes) == (words is not None)
    if words and not options:  # resampled, the values are equal or nearly so
        assert re.match(f"case.nii: channel 1: {words} the result says nothing of it", notes[0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "options",
    [{}, {"spacing": (1.3, 0.9, 1.7)}, {"normalize": lambda image: image / 50}],
    ids=["as it is", "resampled", "normalize"],
)
def test_nan_and_infinity_are_told(network, data, options, bad):
    image = data.astype(np.float32)
    image[3, 4, 5, 1] = bad
    with Scratch() as scratch, pytest.raises(DataError, match=r"case.nii: some voxels are NaN or infinite"):
        predictor(network, **options)([Volume("case.nii", image, np.eye(4))], scratch)


@pytest.mark.parametrize("spacing", [None, (1.3, 0.9, 1.7)])
def test_a_constant_image_is_zero(network, spacing):
    """Whatever the constant: normalised, it is 0, as MONAI's transforms make it."""
    found = []
    with Scratch() as scratch:
        for value in (0, 7, -1024):
            image = Volume("x", np.full((20, 22, 24, 2), value, np.int16), np.eye(4))
            result = predictor(network, spacing=spacing, probabilities=True)([image], scratch)
            assert np.isfinite(result.probabilities).all()
            found.append(result.probabilities)
    for probabilities in found[1:]:
        assert np.abs(probabilities - found[0]).max() < 1e-6


def test_confidence_where_there_is_no_foreground(network, data):
    """There is none of it, whether the network found nothing, or all of it was cleaned away."""
    with Scratch() as scratch:
        image = [Volume("x", data, np.eye(4))]
        nothing = predictor(lambda x: torch.cat([x[:, :1] * 0 + 1, x * 0], dim=1))(image, scratch)
        cleaned = predictor(network, min_ml={1: 1e6, 2: 1e6})(image, scratch)
    for result in (nothing, cleaned):
        assert result.voxels == [data[..., 0].size, 0, 0]
        assert result.mean_confidence is None


def test_probabilities_are_resampled(network, data):
    """Those of the logits, between voxels linear, as by ExtentSpacing: they agree with the segmentation."""
    spacing = (1.3, 0.9, 1.7)
    image = MetaTensor(torch.from_numpy(data).permute(3, 0, 1, 2).float(), affine=torch.eye(4))
    coarse = NormalizeIntensity(channel_wise=True)(ExtentSpacing(spacing)(image))
    inferer = SlidingWindowInferer(WINDOW, 1, 0.5, mode="gaussian", padding_mode="replicate")
    with torch.no_grad():
        logits = inferer(coarse[None], network)[0]
    pixdim = np.array(logits.shape[1:]) / data.shape[:3]
    fine = ExtentSpacing(pixdim)(MetaTensor(logits.as_tensor(), affine=torch.eye(4)))
    expected = fine.softmax(0).permute(1, 2, 3, 0)
    with Scratch() as scratch:
        found = predictor(network, spacing=spacing, probabilities=True)([Volume("x", data, np.eye(4))], scratch)
    assert np.abs(found.probabilities - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16)])
def test_most_probable_of_ties_is_the_first(classes, dtype):
    """Also where the highest class is one of them."""
    logits = torch.randint(0, 3, (classes, 5, 6, 7)).float()
    logits[-1, 0], logits[:-1, 0] = 5, 1
    kept = logits.clone()
    numbers, confidence = most_probable(logits)
    assert numbers.dtype == dtype
    assert confidence.dtype == torch.float32
    first = torch.from_numpy(logits.numpy().argmax(0))  # torch leaves open which of equal ones
    assert torch.equal(numbers.long(), first)
    assert (numbers[0] == classes - 1).all()
    torch.testing.assert_close(confidence, logits.softmax(0).max(0).values)
    assert torch.equal(logits, kept)


def test_scratch_vanishes(tmp_path):
    with Scratch(tmp_path, in_memory=99) as scratch:
        small, large = scratch.array((3, 3, 11), np.uint8), scratch.array((10, 10), np.uint8)
        assert not isinstance(small, np.memmap)
        assert isinstance(large, np.memmap)
        assert not large.any()
        assert large.flags.f_contiguous
        assert len(list(tmp_path.rglob("*.raw"))) == 1
    assert not list(tmp_path.iterdir())
