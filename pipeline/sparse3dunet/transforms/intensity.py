"""Random intensity transforms that MONAI lacks, or that are slow there, and any transform channel by channel.

For images of zero mean and unit variance. MONAI's own array transforms for gamma (``RandAdjustContrast``), contrast,
brightness and low resolution complement these; the bundle's train.yaml has the whole chain. None changes its input.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import get_track_meta
from monai.transforms import MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch.nn.functional import pad

from sparse3dunet.errors import DataError
from sparse3dunet.keys import IMAGE
from sparse3dunet.transforms.arguments import number

TRUNCATE = 3.0
"""Half-width of the kernel of :class:`RandBlur`, in standard deviations."""


class ChannelWise(Randomizable, Transform):
    """Apply a random transform to each channel separately, with independent random draws.

    The contrast, bias field and noise of a T1-weighted channel are independent of those of a T2-weighted one.

    Args:
        transform: array transform from (1, X, Y, Z) to the same shape, such as one of MONAI's, or a ``Compose`` of
            several. It gets a copy without metadata.

    Shapes: image (C, X, Y, Z) -> (C, X, Y, Z) float32, with the image's metadata.

    Raises:
        DataError: when `transform` cannot be called.
        ValueError: when the image has another number of axes, or `transform` changes the shape.

    Example::

        ChannelWise(Compose([RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5)), RandNoise(prob=0.1)]))
    """

    def __init__(self, transform: Callable[[torch.Tensor], Any]) -> None:
        if not callable(transform):
            raise DataError(
                f"expected a transform, or a Compose of several, got {type(transform).__name__} {transform!r}."
            )
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ChannelWise:
        super().set_random_state(seed, state)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(seed, state)
        return self

    def __call__(self, img: Any) -> torch.Tensor:
        source = convert_to_tensor(img, track_meta=get_track_meta())
        if source.ndim != 4:
            raise ValueError(f"an image is (C, X, Y, Z), got shape {tuple(source.shape)}.")
        result = convert_to_tensor(source, dtype=torch.float32, track_meta=False).detach().clone()
        for channel in result.split(1):
            changed = convert_to_tensor(self.transform(channel), track_meta=False)
            if changed.shape != channel.shape:
                raise ValueError(
                    f"{type(self.transform).__name__} made {tuple(changed.shape)} of a channel "
                    f"{tuple(channel.shape)}; a transform applied channel by channel must keep the shape."
                )
            channel.copy_(changed)
        return convert_to_dst_type(result, source, dtype=torch.float32)[0]


class ChannelWised(Randomizable, MapTransform):
    """Dictionary version of :class:`ChannelWise`, with independent random draws for every channel of every key.

    Args:
        keys: keys of the images.
        transform: see :class:`ChannelWise`; an array transform, not a dictionary one.
        allow_missing_keys: whether keys may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection = IMAGE,
        *,
        transform: Callable[[torch.Tensor], Any],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.channel_wise = ChannelWise(transform)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ChannelWised:
        super().set_random_state(seed, state)
        self.channel_wise.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.channel_wise(d[key])
        return d


class _RandIntensity(RandomizableTransform):
    """Draw in ``randomize``, then change all channels alike, as implemented by the subclass."""

    def __call__(self, img: Any, randomize: bool = True) -> torch.Tensor:
        """Return the changed image (C, X, Y, Z) as float32 with its metadata; with `randomize` False as last time.

        If nothing is to change, a float32 image is returned itself, as by MONAI's transforms.
        """
        source = convert_to_tensor(img, dtype=torch.float32, track_meta=get_track_meta())
        if randomize:
            self.randomize()
        if not self._do_transform:
            return source
        plain = convert_to_tensor(source, track_meta=False).detach()
        return convert_to_dst_type(self.change(plain), source, dtype=torch.float32)[0]

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            self.draw()

    @abstractmethod
    def draw(self) -> None:
        """Draw and store what :meth:`change` needs."""

    @abstractmethod
    def change(self, img: torch.Tensor) -> torch.Tensor:
        """Return a new image from `img` (C, X, Y, Z) float32, which is not changed."""


class RandGrayValueCurve(_RandIntensity):
    """Map intensities by a smooth, monotone random curve, after Çiçek et al. (3D U-Net, MICCAI 2016).

    It replaces MONAI's ``RandHistogramShift``, whose polygon can be flat, so that it erases contrast, and which takes
    four times as long. Here the slope is limited: the order of the intensities stays, and so do differences. The curve
    is a Bézier curve with equidistant control points, and therefore a polynomial.

    Args:
        prob: probability that the image is changed.
        control_points: number of control points from the least intensity to the largest, 3 to 10; more make the curve
            more winding.
        max_slope: largest ratio, 1 or more, of the slopes of the polygon through the control points, so that the
            curve's slope is between 1 / max_slope and max_slope everywhere.
        retain_stats: whether to keep the image's mean and standard deviation, as normalising would; otherwise its least
            and largest value stay.

    Attributes:
        heights: heights of the control points of the last curve drawn, from 0 to 1.

    Raises:
        DataError: when an argument is out of range.
    """

    def __init__(
        self, prob: float = 0.1, control_points: int = 6, max_slope: float = 6.0, retain_stats: bool = True
    ) -> None:
        super().__init__(number("prob", prob, 0, 1))
        # In float32, polynomials of a high degree become inexact.
        self.control_points = number("control_points", control_points, 3, 10, whole=True)
        self.max_slope = number("max_slope", max_slope, 1)
        self.retain_stats = retain_stats
        self.heights = np.linspace(0, 1, control_points)

    def draw(self) -> None:
        slopes = np.exp(self.R.uniform(0, math.log(self.max_slope), self.control_points - 1))
        self.heights = np.append(0, np.cumsum(slopes)) / slopes.sum()

    def change(self, img: torch.Tensor) -> torch.Tensor:
        least, largest = torch.aminmax(img)
        if least == largest:
            return img.clone()
        degree = self.control_points - 1
        powers = [math.comb(degree, n) * float(np.diff(self.heights, n)[0]) for n in range(1, degree + 1)]
        place = (img - least).div_(largest - least)
        result = place * powers.pop()
        while powers:
            result.add_(powers.pop()).mul_(place)
        if not self.retain_stats:
            return result.mul_(largest - least).add_(least)
        mean = img.mean()
        spread = torch.sub(img, mean, out=place).norm()
        result -= result.mean()
        return result.mul_(spread / result.norm()).add_(mean)


class RandShading(_RandIntensity):
    """Multiply the signal by a smooth random gain, as the bias field of MRI or uneven illumination in microscopy.

    Like MONAI's ``RandBiasField``, but for normalised images: MONAI's multiplies about 0, which is the mean after
    normalisation, so that a voxel of mean brightness never changes, and air becomes darker where the coil is more
    sensitive. Here the signal is the difference from the darkest voxel. The gain is the exponential of a polynomial,
    evaluated one axis after the other, in a quarter of MONAI's time or less.

    Args:
        prob: probability that the image is changed.
        degree: degree of the polynomial, at least 1.
        coefficient: coefficients of products of Legendre polynomials on the patch are drawn from -coefficient to
            coefficient, except the constant one, which is 0. With 0.1 and degree 3 the gain's logarithm has a standard
            deviation of about 0.11 in the patch, and 0.25 in its corners.

    Attributes:
        coefficients: the last coefficients drawn, (degree + 1, degree + 1, degree + 1).

    Raises:
        DataError: when an argument is out of range.
    """

    def __init__(self, prob: float = 0.1, degree: int = 3, coefficient: float = 0.1) -> None:
        super().__init__(number("prob", prob, 0, 1))
        self.degree = number("degree", degree, 1, whole=True)
        self.coefficient = number("coefficient", coefficient, 0)
        total = np.indices([degree + 1] * 3).sum(0)
        self._drawn = (total > 0) & (total <= degree)
        self.coefficients = np.zeros(self._drawn.shape)

    def draw(self) -> None:
        self.coefficients = np.zeros(self._drawn.shape)
        self.coefficients[self._drawn] = self.R.uniform(-self.coefficient, self.coefficient, self._drawn.sum())

    def gain(self, spatial_shape: Sequence[int]) -> torch.Tensor:
        """Return the last gain drawn, (X, Y, Z) float32, for an image of this shape."""
        x, y, z = (
            torch.from_numpy(np.polynomial.legendre.legvander(np.linspace(-1, 1, n), self.degree)).float()
            for n in spatial_shape
        )
        return torch.einsum("ijk,xi,yj,zk->xyz", torch.from_numpy(self.coefficients).float(), x, y, z).exp_()

    def change(self, img: torch.Tensor) -> torch.Tensor:
        darkest = img.min()
        return (img - darkest).mul_(self.gain(img.shape[1:]).to(img.device)).add_(darkest)


class RandBlur(_RandIntensity):
    """Smooth by a Gaussian of random width along each axis.

    Like MONAI's ``RandGaussianSmooth``, which pads by 0, the mean intensity, even next to bright tissue, and takes five
    times as long, more for large patches. Here the outermost voxels are repeated, as in
    ``scipy.ndimage.gaussian_filter(mode="nearest", truncate=TRUNCATE)``.

    Args:
        prob: probability that the image is changed.
        sigma: (least, largest) standard deviation in voxels, above 0.

    Attributes:
        sigmas: the last standard deviations drawn, for the three axes.

    Raises:
        DataError: when an argument is out of range.
    """

    def __init__(self, prob: float = 0.1, sigma: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__(number("prob", prob, 0, 1))
        limits = list(sigma) if isinstance(sigma, (list, tuple)) else []
        if [isinstance(s, (int, float)) for s in limits] != [True, True] or not 0 < limits[0] <= limits[1] < math.inf:
            raise DataError(f"sigma must be (least, largest), above 0 and finite; got {sigma!r}.")
        self.sigma = (float(limits[0]), float(limits[1]))
        self.sigmas = np.full(3, self.sigma[0])

    def draw(self) -> None:
        self.sigmas = self.R.uniform(*self.sigma, 3)

    def change(self, img: torch.Tensor) -> torch.Tensor:
        # Few taps: shifting and adding whole volumes is faster than any convolution of PyTorch or SciPy.
        kernels = [_half_gaussian(sigma) for sigma in self.sigmas]
        radii = [len(kernel) - 1 for kernel in kernels]
        result = pad(img, [radius for radius in radii[::-1] for _ in ("before", "after")], mode="replicate")
        for axis, (kernel, radius) in enumerate(zip(kernels, radii), start=1):
            size = img.shape[axis]
            padded, result = result, result.narrow(axis, radius, size) * kernel[0]
            for distance, factor in enumerate(kernel[1:], start=1):
                result.add_(padded.narrow(axis, radius - distance, size), alpha=factor)
                result.add_(padded.narrow(axis, radius + distance, size), alpha=factor)
        return result


class RandNoise(_RandIntensity):
    """Add white Gaussian noise.

    Like MONAI's ``RandGaussianNoise``, in a fifth of the time: the noise is drawn by PyTorch, its seed from this
    transform's random state.

    Args:
        prob: probability that the image is changed.
        std: largest standard deviation; the actual one is drawn from 0 to this.

    Raises:
        DataError: when an argument is out of range.
    """

    def __init__(self, prob: float = 0.1, std: float = 0.1) -> None:
        super().__init__(number("prob", prob, 0, 1))
        self.std = number("std", std, 0)
        self._std, self._seed = 0.0, 0

    def draw(self) -> None:
        self._std = self.R.uniform(0, self.std)
        self._seed = int(self.R.randint(2**31 - 1))

    def change(self, img: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(img.device).manual_seed(self._seed)
        return torch.empty_like(img).normal_(0, self._std, generator=generator).add_(img)


def _half_gaussian(sigma: float) -> list[float]:
    """Return the middle of a Gaussian kernel and its taps to one side."""
    taps = np.exp(-0.5 * (np.arange(int(TRUNCATE * sigma + 0.5) + 1) / sigma) ** 2)
    return (taps / (taps[0] + 2 * taps[1:].sum())).tolist()
