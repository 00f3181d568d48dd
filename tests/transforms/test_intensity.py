"""Gray values: each channel on its own, reproducible, never in place, and fast code equal to slow references."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import (
    Compose,
    Lambda,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandScaleIntensity,
    RandShiftIntensity,
    RandSimulateLowResolution,
)
from monai.transforms.traits import RandomizableTrait
from scipy.interpolate import BPoly
from scipy.ndimage import gaussian_filter

from sparse3dunet.errors import DataError
from sparse3dunet.transforms.intensity import (
    TRUNCATE,
    ChannelWise,
    ChannelWised,
    RandBlur,
    RandGrayValueCurve,
    RandNoise,
    RandShading,
)

SHAPES = [(9, 10, 11), (16, 1, 5), (2, 3, 12)]
OWN = [RandGrayValueCurve, RandShading, RandBlur, RandNoise]


def chain(prob=None):
    """What the bundle does to an image, each step with its own probability or with `prob`."""

    def p(value):
        return value if prob is None else prob

    return [
        RandGrayValueCurve(p(0.3)),
        RandAdjustContrast(p(0.3), (0.7, 1.5), retain_stats=True),
        RandAdjustContrast(p(0.1), (0.7, 1.5), invert_image=True, retain_stats=True),
        RandShading(p(0.15)),
        RandBlur(p(0.1)),
        RandSimulateLowResolution(p(0.1), "trilinear", zoom_range=(0.5, 1.0)),
        RandNoise(p(0.15), 0.15),
        RandScaleIntensity(0.25, p(0.3)),
        RandShiftIntensity(0.2, prob=p(0.3)),
    ]


def image(channels=1, shape=(9, 10, 11), seed=0):
    return torch.from_numpy(np.random.RandomState(seed).normal(size=(channels, *shape)).astype(np.float32))


def always(kind):
    transform = kind(prob=1)
    transform.set_random_state(3)
    return transform


# ---------------------------------------------------------------- channel by channel


@pytest.mark.parametrize("step", range(len(chain())), ids=[type(t).__name__ for t in chain()])
def test_each_channel_has_its_own_draw(step):
    alike = image().expand(3, -1, -1, -1)
    result = ChannelWise(chain(1)[step]).set_random_state(1)(alike)
    assert not torch.equal(result[0], result[1])
    assert not torch.equal(result[1], result[2])


def test_each_channel_is_changed_or_not_on_its_own():
    transform = ChannelWise(RandShiftIntensity(1, prob=0.5)).set_random_state(0)
    changed = [(transform(torch.zeros(2, 2, 2, 2)).flatten(1).any(1)).tolist() for _ in range(40)]
    assert {tuple(c) for c in changed} == {(False, False), (False, True), (True, False), (True, True)}


@pytest.mark.parametrize(
    "transform",
    [
        RandAdjustContrast(prob=0.5, gamma=(0.7, 1.5)),
        RandGaussianNoise(prob=0.5),
        Compose([RandScaleIntensity(0.3, prob=0.5), RandBiasField(prob=0.5)]),
    ],
    ids=lambda t: type(t).__name__,
)
def test_one_channel_is_as_without(transform):
    transform.set_random_state(5)
    expected = [transform(image()) for _ in range(6)]
    each = ChannelWise(transform).set_random_state(5)
    assert all(torch.equal(each(image()), other) for other in expected)


def test_channels_take_turns():
    transform = RandGaussianNoise(prob=0.7)
    both = image(2)
    result = ChannelWise(transform).set_random_state(2)(both)
    transform.set_random_state(2)
    assert torch.equal(result, torch.cat([transform(both[:1]), transform(both[1:])]))


def test_any_callable():
    assert torch.equal(ChannelWise(torch.neg).set_random_state(0)(image(2)), -image(2))


@pytest.mark.parametrize("source", [image(2), image(2).numpy(), image(2).double(), image(2).round().to(torch.int16)])
def test_float32_with_metadata(source):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    for given in (source, MetaTensor(source, affine=affine, meta={"filename_or_obj": "a.nii"})):
        for probability in (0, 1):
            result = ChannelWise(Compose(chain(probability)))(given)
            assert result.dtype == torch.float32
            assert result.shape == given.shape
    assert torch.equal(result.affine, given.affine)
    assert result.meta["filename_or_obj"] == "a.nii"


def test_dictionary_twin():
    transform = ChannelWised(["image", "other"], transform=Compose(chain(1))).set_random_state(0)
    data = {"image": image(2), "other": image(2), "label": "untouched"}
    result = transform(data)
    assert result["label"] == "untouched"
    assert torch.equal(data["image"], image(2))
    assert not torch.equal(result["image"], result["other"])
    expected = ChannelWise(Compose(chain(1))).set_random_state(0)
    assert torch.equal(result["image"], expected(image(2)))
    assert torch.equal(result["other"], expected(image(2)))


def test_dictionary_twin_without_the_key():
    assert ChannelWised(transform=RandNoise(), allow_missing_keys=True)({"label": 1}) == {"label": 1}
    with pytest.raises(KeyError, match="image"):
        ChannelWised(transform=RandNoise())({"label": 1})


# ---------------------------------------------------------------- the chain


def test_reproducible_and_never_twice_the_same():
    first, second = (ChannelWised(transform=Compose(chain())).set_random_state(8) for _ in range(2))
    drawn = [first({"image": image(2)})["image"] for _ in range(8)]
    again = [second({"image": image(2)})["image"] for _ in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    assert all(not torch.equal(a, b) for n, a in enumerate(drawn) for b in drawn[:n])
    first.set_random_state(state=np.random.RandomState(8))
    assert torch.equal(first({"image": image(2)})["image"], drawn[0])
    assert torch.equal(pickle.loads(pickle.dumps(first))({"image": image(2)})["image"], drawn[1])


@pytest.mark.parametrize("step", range(len(chain())), ids=[type(t).__name__ for t in chain()])
def test_never_in_place(step):
    source = MetaTensor(image(2, (12, 12, 12)))[:, 1:10, :, 2:]  # as a view of a cached volume
    before = source.as_tensor().clone()
    bare = chain(1)[step].set_random_state(0)
    for transform in (bare, ChannelWise(bare)):
        result = transform(source)
        assert torch.equal(source.as_tensor(), before)
        result += 1
        assert torch.equal(source.as_tensor(), before)


def test_in_place_transforms_get_a_copy():
    source = image(2)
    assert torch.equal(ChannelWise(lambda channel: channel.mul_(2))(source), source * 2)
    assert torch.equal(source, image(2))
    assert torch.equal(ChannelWise(lambda channel: channel)(source).zero_(), torch.zeros(2, 9, 10, 11))
    assert torch.equal(source, image(2))


@pytest.mark.parametrize("constant", [0.0, -0.4, 1e6])
def test_constant_channels(constant):
    source = torch.cat([torch.full((1, 9, 10, 11), constant), image()])
    transform = ChannelWise(Compose(chain(1))).set_random_state(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            assert transform(source).isfinite().all()
            assert transform(source[:1]).isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes(shape):
    source = image(2, shape)
    result = ChannelWise(Compose(chain(1)))(source)
    assert result.shape == source.shape
    assert result.isfinite().all()


def test_moderate():
    """Normalised images stay about normalised, and some patches as they are."""
    scan = gaussian_filter(image(1, (16, 16, 16))[0].numpy(), 2)
    scan = torch.from_numpy((scan - scan.mean()) / scan.std())[None]
    transform = ChannelWise(Compose(chain())).set_random_state(0)
    drawn = [transform(scan) for _ in range(100)]
    assert max(abs(d.mean().item()) for d in drawn) < 0.5
    assert min(d.std().item() for d in drawn) > 0.6
    assert max(d.std().item() for d in drawn) < 1.6
    assert 5 < sum(torch.equal(d, scan) for d in drawn) < 30


@pytest.mark.parametrize("step", [t for t in chain(1) if isinstance(t, (RandBlur, RandSimulateLowResolution))])
def test_the_image_stays_where_its_label_is(step):
    """By default, MONAI's low resolution takes the nearest voxel, and with it moves the image by up to one voxel."""
    ramp = torch.arange(40.0).view(1, 40, 1, 1).expand(1, 40, 8, 8)
    step.set_random_state(0)
    for _ in range(10):
        assert (step(ramp) - ramp)[0, 5:-5].abs().max() < 1e-3


def test_a_cached_data_set_draws_each_time():
    loaded = []

    def load(data):
        loaded.append(1)
        return {"image": image(2)}

    transform = ChannelWised(transform=RandNoise(prob=1))
    assert isinstance(transform, RandomizableTrait)
    assert all(isinstance(t, RandomizableTrait) for t in [ChannelWise(torch.neg), *(kind() for kind in OWN)])
    data = CacheDataset([{}], Compose([Lambda(load), transform]), progress=False)
    once, twice = data[0]["image"], data[0]["image"]
    assert not torch.equal(once, twice)
    assert len(loaded) == 1
    data = CacheDataset([{}], Compose([Lambda(load), transform]), progress=False, copy_cache=False)
    assert not torch.equal(data[0]["image"], image(2))
    assert torch.equal(data._cache[0]["image"], image(2))


# ---------------------------------------------------------------- one by one


@pytest.mark.parametrize("kind", OWN)
def test_without_drawing_the_last_draw_is_applied(kind):
    transform = always(kind)
    result = transform(image(2))
    assert torch.equal(transform(image(2), randomize=False), result)
    assert not torch.equal(transform(image(2)), result)


@pytest.mark.parametrize("kind", OWN)
def test_probability(kind):
    transform = kind(prob=0.3)
    transform.set_random_state(0)
    source = image(1, (2, 2, 2))
    changed = sum(not torch.equal(transform(source), source) for _ in range(300))
    assert 60 < changed < 120


@pytest.mark.parametrize("kind", OWN)
def test_own_transforms_keep_type_and_metadata(kind):
    source = MetaTensor(image(2).double(), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    result = always(kind)(source)
    assert result.dtype == torch.float32
    assert result.shape == source.shape
    assert torch.equal(result.affine, source.affine)


@pytest.mark.parametrize("control_points", [3, 6, 10])
@pytest.mark.parametrize("max_slope", [1, 1.5, 20])
def test_curve_is_monotone_with_limited_slope(control_points, max_slope):
    transform = RandGrayValueCurve(1, control_points, max_slope, retain_stats=False)
    transform.set_random_state(0)
    ramp = torch.linspace(-2, 5, 4096).view(1, 16, 16, 16)
    for _ in range(10):
        result = transform(ramp).flatten()
        slope = result.diff() / ramp.flatten().diff()
        assert (slope > 0).all()
        assert slope.min() > 1 / max_slope - 0.01
        assert slope.max() < max_slope + 0.01
        assert result[0] == -2
        assert result[-1] == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize("control_points", [3, 6, 10])
def test_curve_is_scipy_s(control_points):
    transform = RandGrayValueCurve(1, control_points, 9, retain_stats=False)
    transform.set_random_state(4)
    source = image(2)
    for _ in range(5):
        result = transform(source)
        slopes = np.diff(transform.heights)
        assert transform.heights[0] == 0
        assert transform.heights[-1] == pytest.approx(1)
        assert 1.5 < slopes.max() / slopes.min() < 9
        least, largest = source.min().item(), source.max().item()
        curve = BPoly(transform.heights[:, None], [least, largest])
        expected = least + (largest - least) * curve(source.double().numpy())
        np.testing.assert_allclose(result, expected, atol=2e-4)


def test_curve_retains_mean_and_standard_deviation():
    transform = always(RandGrayValueCurve)
    source = image(1, (16, 16, 16)) ** 3 + 5
    for _ in range(5):
        result = transform(source)
        assert result.mean().item() == pytest.approx(source.mean().item(), rel=1e-5)
        assert result.std().item() == pytest.approx(source.std().item(), rel=1e-5)
        assert not torch.allclose(result, source, atol=1e-2)


@pytest.mark.parametrize("degree", [1, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shading_is_monai_s_bias_field_above_the_darkest(degree, shape):
    transform = RandShading(1, degree, 0.3)
    transform.set_random_state(1)
    source = image(2, shape) - 4
    result = transform(source)
    reference = RandBiasField(degree, prob=1)
    reference._coeff = transform.coefficients[np.indices([degree + 1] * 3).sum(0) <= degree].tolist()
    expected = reference(source - source.min(), randomize=False) + source.min()
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(transform.coefficients).max() <= 0.3
    assert transform.coefficients[0, 0, 0] == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [(0.1, 0.1), (0.5, 1.0), (2, 4)])
def test_blur_is_scipy_s(shape, sigma):
    transform = RandBlur(1, sigma)
    transform.set_random_state(2)
    source = image(2, shape)
    result = transform(source)
    expected = [
        gaussian_filter(c, transform.sigmas, mode="nearest", truncate=TRUNCATE) for c in source.double().numpy()
    ]
    np.testing.assert_allclose(result, np.stack(expected), atol=1e-6)
    assert sigma[0] <= min(transform.sigmas) <= max(transform.sigmas) <= sigma[1]


def test_blur_keeps_a_constant():
    torch.testing.assert_close(always(RandBlur)(torch.full((1, 9, 9, 9), 7.0)), torch.full((1, 9, 9, 9), 7.0))


def test_noise():
    transform = RandNoise(1, 0.4)
    transform.set_random_state(0)
    source = image(2, (24, 24, 24))
    spreads = []
    for _ in range(30):
        noise = (transform(source) - source).double()
        spreads.append(noise.std().item())
        assert abs(noise.mean().item()) < 5 * 0.4 / noise.numel() ** 0.5
        assert (noise / noise.std()).pow(4).mean().item() == pytest.approx(3, abs=0.2)
        for axis in range(4):  # white: neighbours do not go together, nor do channels
            other = noise.roll(1, axis)
            assert abs((noise * other).mean() / noise.var()) < 0.04
    assert 0 < min(spreads) < 0.1
    assert 0.3 < max(spreads) < 0.4 * 1.02


@pytest.mark.parametrize("kind", [RandShading, RandNoise])
def test_of_no_strength(kind):
    source = image()
    torch.testing.assert_close(kind(1, **{"coefficient" if kind is RandShading else "std": 0})(source), source)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ChannelWise([RandNoise()]), "a Compose of several, got list"),
        (lambda: ChannelWised(transform=None), "a Compose of several, got NoneType"),
        (lambda: RandNoise(prob=1.5), "prob must be a number from 0 to 1; got 1.5"),
        (lambda: RandNoise(prob=float("nan")), "prob must be a number from 0 to 1; got nan"),
        (lambda: RandNoise(prob="often"), "prob must be a number from 0 to 1; got 'often'"),
        (lambda: RandBlur(sigma=1.0), r"sigma must be \(least, largest\), .* got 1.0"),
        (lambda: RandGrayValueCurve(control_points="6"), "control_points must be a whole number .* got '6'"),
        (lambda: RandNoise(std=-1), "std must be a number at least 0; got -1"),
        (lambda: RandShading(degree=0), "degree must be a whole number at least 1; got 0"),
        (lambda: RandShading(coefficient=float("inf")), "coefficient must be a number at least 0; got inf"),
        (lambda: RandBlur(sigma=(0, 1)), r"sigma must be \(least, largest\), above 0 .* got \(0, 1\)"),
        (lambda: RandBlur(sigma=(2, 1)), r"got \(2, 1\)"),
        (lambda: RandBlur(sigma=(1,)), r"got \(1,\)"),
        (lambda: RandGrayValueCurve(control_points=2), "control_points must be a whole number from 3 to 10; got 2"),
        (lambda: RandGrayValueCurve(control_points=11), "control_points must be a whole number from 3 to 10; got 11"),
        (lambda: RandGrayValueCurve(max_slope=0.5), "max_slope must be a number at least 1; got 0.5"),
    ],
)
def test_wrong_settings(make, words):
    with pytest.raises(DataError, match=words):
        make()


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(C, X, Y, Z\), got shape \(9, 10, 11\)"):
        ChannelWise(RandNoise())(image()[0])
    with pytest.raises(ValueError, match=r"made \(1, 4, 10, 11\) of a channel \(1, 9, 10, 11\); .* keep the shape"):
        ChannelWise(lambda channel: channel[:, :4])(image(2))
