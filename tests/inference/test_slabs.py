"""Sliding windows in slabs: equal to MONAI's, seamless for valid convolutions."""

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn

from sparse3dunet.errors import DataError
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.networks import UNet3D
from sparse3dunet.networks.layers import fast_on_cpu

WINDOW = (16, 20, 24)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet3D(2, 3, channels=(4, 8, 16), norm="instance", padding="same").eval()


@pytest.fixture(scope="module")
def valid_network():
    """Normalised by fixed statistics, which are not those of any input."""
    torch.manual_seed(1)
    network = UNet3D(1, 3, channels=(4, 8, 16), norm="batch", padding="valid").eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return network


def monai(x, network, overlap=0.5, window=WINDOW):
    with torch.no_grad():
        return SlidingWindowInferer(window, 1, overlap, mode="gaussian", padding_mode="replicate")(x, network)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(41, 23, 35), (10, 50, 33), (16, 20, 24), (7, 9, 11), (64, 20, 27)])
def test_equals_monai(network, shape, overlap):
    x = torch.randn(2, 2, *shape)
    found = SlabInferer(WINDOW, overlap, bfloat16=False)(x, network)
    torch.testing.assert_close(found, monai(x, network, overlap), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, monai(x, fast_on_cpu(network), overlap), rtol=0, atol=1e-5)  # the same rounding


def test_metadata_is_kept(network):
    x = MetaTensor(torch.randn(1, 2, 17, 20, 24), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    found = SlabInferer(WINDOW, bfloat16=False)(x, network)
    assert isinstance(found, MetaTensor)
    assert torch.equal(found.affine, x.affine)
    torch.testing.assert_close(found.as_tensor(), monai(x.as_tensor(), network), rtol=0, atol=1e-5)


def test_slabs_follow_each_other(network):
    """Along the axis with most windows, each voxel once, none thicker than a row."""
    x = np.random.default_rng(0).normal(size=(2, 30, 61, 26)).astype(np.float32)
    inferer = SlabInferer(WINDOW, 0.5, bfloat16=False)
    next_one = 0
    for rows, logits in inferer.slabs(list(x), network):
        assert rows.start == next_one
        assert rows.stop - rows.start <= WINDOW[1]
        assert logits.shape == (3, 30, rows.stop - rows.start, 26)
        next_one = rows.stop
    assert next_one == 61


def test_in_pieces_it_is_the_same(network, monkeypatch):
    x = torch.randn(1, 2, 20, 33, 50)
    whole = SlabInferer(WINDOW, bfloat16=False)(x, network)
    monkeypatch.setattr("sparse3dunet.inference.slabs.PIECE", 1)
    assert torch.equal(SlabInferer(WINDOW, bfloat16=False)(x, network), whole)


class Counting(nn.Module):
    """A network that counts how often it is asked."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, [0]

    def forward(self, x):
        self.calls[0] += len(x)
        return self.network(x)

    def __deepcopy__(self, memo):
        return self


def test_constant_windows_pass_once(network):
    """As outside of a skull-stripped brain; and the result is the same."""
    x = torch.zeros(1, 2, 16, 20, 24 * 6)
    x[..., 30:50] = torch.randn(1, 2, 16, 20, 20)
    x[..., 24 * 5 :] = 3.5
    counting, done = Counting(network), []
    inferer = SlabInferer(WINDOW, 0, bfloat16=False, on_window=lambda *numbers: done.append(numbers))
    torch.testing.assert_close(inferer(x, counting), monai(x, network, 0), rtol=0, atol=1e-5)
    assert counting.calls == [4]  # zeros, two with noise, 3.5
    assert done[-1] == (6, 6)


def test_seamless_whatever_the_tile(valid_network):
    """The same to 1e-5 for tiles of five sizes, and for one tile over the whole mirrored volume."""
    x = torch.randn(1, 1, 21, 17, 10)
    sizes = [(44, 44, 44), (48, 52, 56), (60, 44, 72), (52, 60, 48), (64, 64, 64)]
    results = [SlabInferer(size, bfloat16=False)(x, valid_network) for size in sizes]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)
    assert results[0].std() > 0.01
    margin = 20
    padded = np.pad(x[0, 0].numpy(), [(margin, margin + 3), (margin, margin + 3), (margin, margin + 2)], "reflect")
    with torch.no_grad():
        whole = valid_network(torch.from_numpy(padded)[None, None])
    torch.testing.assert_close(results[0], whole[..., :21, :17, :10], rtol=0, atol=1e-5)


def test_mirroring_is_the_mean_over_reflections(network):
    x = torch.randn(1, 2, *WINDOW)
    with torch.no_grad():
        axes = [(), (2,), (4,), (2, 4)]
        expected = sum((network(x.flip(a)) if a else network(x)).flip(a) if a else network(x) for a in axes) / 4
    found = SlabInferer(WINDOW, mirror_axes=(2, 0), bfloat16=False)(x, network)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_bfloat16_is_near(network):
    x = torch.randn(1, 2, 20, 20, 30, generator=torch.Generator().manual_seed(0))
    exact, rounded = (SlabInferer(WINDOW, bfloat16=b)(x, network) for b in (False, True))
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.05)


def test_faults_are_named(network, valid_network):
    for arguments, words in [
        ({"overlap": 1}, "overlap"),
        ({"overlap": (0.5, 0.5, 0.5)}, "overlap must be one number"),
        ({"overlap": "a"}, "overlap must be one number"),
        ({"mirror_axes": 0}, "mirror_axes must be a list"),
        ({"roi_size": (16.7, 16, 16)}, "roi_size must be one or three whole numbers"),
        ({"roi_size": (16, 16)}, "roi_size must be"),
        ({"roi_size": 0}, "roi_size must be"),
        ({"roi_size": None}, "roi_size must be"),
        ({"border": "zeros"}, "border"),
        ({"mirror_axes": (3,)}, "mirror_axes"),
    ]:
        with pytest.raises(ValueError, match=words):
            SlabInferer(**{"roi_size": WINDOW, **arguments})
    assert SlabInferer(16).roi_size == SlabInferer((16, 16.0, 16)).roi_size == (16, 16, 16)
    with pytest.raises(DataError, match=r"15 voxels along axis 0.*12 and 16"):
        SlabInferer((15, 20, 24))(torch.rand(1, 2, 30, 30, 30), network)
    shallow = UNet3D(1, 2, channels=(4, 8, 8, 8)).eval()
    with pytest.raises(DataError, match="downsampling factor 8"):
        SlabInferer((92, 92, 92))(torch.rand(1, 1, 30, 30, 30), shallow)
    with pytest.raises(DataError, match=r"returns \(14, 18, 22\) voxels for a window of \(16, 20, 24\)"):
        SlabInferer(WINDOW)(torch.rand(1, 1, 30, 30, 30), nn.Conv3d(1, 2, 3))


def test_further_arguments_are_the_networks():
    x = torch.rand(1, 1, 17, 20, 24)
    inferer = SlabInferer(WINDOW, mirror_axes=[0], bfloat16=False)
    found = inferer(x, lambda batch, scale, shift=0: batch * scale + shift, 5, shift=1)
    torch.testing.assert_close(found, x * 5 + 1)


def test_a_plain_function_is_a_network(network):
    """Equal to MONAI's; what makes another size of its windows is told."""
    x = torch.randn(1, 2, 30, 20, 24)
    found = SlabInferer(WINDOW, bfloat16=False)(x, lambda batch: network(batch))
    torch.testing.assert_close(found, monai(x, network), rtol=0, atol=1e-5)
    with pytest.raises(DataError, match=r"returns \(8, 10, 12\) voxels for a window of \(16, 20, 24\)"):
        SlabInferer(WINDOW)(x, lambda batch: batch[..., ::2, ::2, ::2])
    for outputs in ((x, x), [x], {"out": x}):
        with pytest.raises(DataError, match=f"the network returns a {type(outputs).__name__}, expected one tensor"):
            SlabInferer(WINDOW)(x, lambda batch, outputs=outputs: outputs)
    for batch in (x[:0], x[0], x[..., :0]):
        with pytest.raises(DataError, match=r"expected a batch of volumes \(B, C, X, Y, Z\)"):
            SlabInferer(WINDOW)(batch, network)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float16, torch.float64])
def test_logits_are_float32(network, dtype):
    """Whatever the image's type is, and whether it comes with metadata."""
    x = torch.randint(0, 3, (1, 2, 20, 20, 24)).to(dtype)
    expected = SlabInferer(WINDOW, bfloat16=False)(x, network)
    assert expected.dtype == torch.float32
    found = SlabInferer(WINDOW, bfloat16=False)(MetaTensor(x), network)
    torch.testing.assert_close(found.as_tensor(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("axes", [(1,), (0, 1, 2)])
def test_mirroring_of_each_window(network, axes):
    """Before they are blended: as MONAI's inferer with a network that does it itself."""
    flips = [f for n in range(len(axes) + 1) for f in itertools.combinations([axis + 2 for axis in axes], n)]

    def mirrored(batch):
        return sum(network(batch.flip(f)).flip(f) for f in flips) / len(flips)

    x = torch.randn(1, 2, 21, 20, 30)
    found = SlabInferer(WINDOW, mirror_axes=axes, bfloat16=False)(x, network)
    torch.testing.assert_close(found, monai(x, mirrored), rtol=0, atol=1e-5)


def test_mirroring_changes_nothing_where_the_network_is_symmetric():
    symmetric = nn.Conv3d(2, 3, 3, padding=1).eval()
    with torch.no_grad():
        axes = [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
        symmetric.weight.copy_(sum(symmetric.weight.flip(a) if a else symmetric.weight for a in axes) / 8)
    x = torch.randn(1, 2, 21, 23, 30)
    found = SlabInferer(WINDOW, mirror_axes=(0, 1, 2), bfloat16=False)(x, symmetric)
    torch.testing.assert_close(found, SlabInferer(WINDOW, bfloat16=False)(x, symmetric), rtol=0, atol=1e-5)


def test_windows_of_a_file_are_prepared(network, tmp_path):
    """The normalisation is applied to each window, and leaves the file as it is."""
    x = np.random.default_rng(0).integers(0, 99, (2, 30, 20, 33)).astype(np.int16)
    x.tofile(tmp_path / "x")
    on_disk = list(np.memmap(tmp_path / "x", np.int16, "r+", shape=x.shape))
    inferer = SlabInferer(WINDOW, bfloat16=False)

    def normalize(window):
        window -= 50
        window /= 20
        return window

    slabs = [logits for _, logits in inferer.slabs(on_disk, network, prepare=normalize)]
    found = torch.cat(slabs, dim=inferer.windows((30, 20, 33), network).row_axis + 1)
    expected = monai((torch.from_numpy(x)[None].float() - 50) / 20, network)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert np.array_equal(on_disk, x)
