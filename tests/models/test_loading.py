"""Models from whatever holds them; nothing that could run is ever loaded."""

import json
import os
import pickle
import shutil
import zipfile

import pytest
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D

DESCRIPTION = {"class_names": ["background", "shell", "core"], "class_values": [0, 5, 300], "patch_size": [16, 16, 16]}
VERSION_2 = {
    **{**DESCRIPTION, "schema_version": 2, "in_channels": 1, "spacing": None, "unlabeled": [], "ignore_index": None},
    **{"annotated_slices": None, "normalize": [], "intensity": None, "regions": None, "training": [], "validation": []},
}
X = torch.rand(1, 1, 16, 12, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    return UNet3D(1, 3, channels=(4, 8), norm="instance", padding="same").eval()


@pytest.fixture
def folder(tmp_path, network):
    """As training leaves it."""
    models = tmp_path / "models"
    models.mkdir()
    torch.save(network.state_dict(), models / "model.pt")
    torch.save({"network": network.state_dict(), "trainer": {"epoch": 3}}, models / "last.pt")
    (models / "model.json").write_text(json.dumps({**DESCRIPTION, "network": network.config}))
    return models


def bundle_of(folder, root):
    """A packaged bundle."""
    shutil.copytree(folder, root / "models")
    (root / "configs").mkdir()
    (root / "configs/metadata.json").write_text("{}")
    return root


def zip_of(root, file, top=""):
    assert root not in file.parents, "or the archive would take up itself, without end"
    with zipfile.ZipFile(file, "w") as archive:
        for path in root.rglob("*"):
            if path.is_file():
                archive.write(path, f"{top}{path.relative_to(root)}")
    return file


def test_one_model_in_many_places(folder, network, tmp_path):
    bundle = bundle_of(folder, tmp_path / "bundle")
    places = [folder, folder / "model.pt", bundle, zip_of(bundle, tmp_path / "a.zip")]
    places.append(zip_of(bundle, tmp_path / "b.zip", "bundle-1.0/"))
    models = [load_model(place) for place in places]
    with torch.no_grad():
        assert all(torch.equal(model.network(X), network(X)) for model in models)
    assert len({model.digest for model in models}) == 1
    model = models[0]
    assert (model.class_names, model.class_values) == (("background", "shell", "core"), (0, 5, 300))
    assert (model.patch_size, model.spacing, model.in_channels) == ((16, 16, 16), None, 1)
    assert not model.network.training


def test_digests_tell_models_apart(folder, network):
    digests = [load_model(folder).digest]
    (folder / "model.json").write_text(json.dumps({**DESCRIPTION, "network": network.config, "spacing": [1, 1, 2]}))
    digests.append(load_model(folder).digest)
    state = network.state_dict()
    state["head.bias"] += 1
    torch.save(state, folder / "model.pt")
    digests.append(load_model(folder).digest)
    assert len(set(digests)) == 3


def test_last_checkpoint(folder, network):
    with torch.no_grad():
        assert torch.equal(load_model(folder / "last.pt").network(X), network(X))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("described", [True, False])
def test_torchscript(folder, network, tmp_path, inside, described):
    """With the description in the file or beside it, and with or without what it says of the network's form."""
    description = {**DESCRIPTION, "network": network.config if described else None}
    scripted = torch.jit.trace(network, X)
    extra = {"model.json": json.dumps(description)} if inside else {}
    torch.jit.save(scripted, tmp_path / "model.ts", _extra_files=extra)
    if not inside:
        (tmp_path / "model.json").write_text(json.dumps(description))
    model = load_model(tmp_path / "model.ts")
    with torch.no_grad():
        assert torch.allclose(model.network(X), network(X), atol=1e-4)  # one volume is split, not by TorchScript
        several = torch.cat([X, X.flip(2)])
        assert torch.allclose(model.network(several), network(several), atol=1e-6)
    assert hasattr(model.network, "output_size") == described


@pytest.mark.filterwarnings("ignore")
def test_torchscript_of_another_network(network, tmp_path):
    """In a bundle, in double precision, and of two channels, which its description alone can tell."""
    other = torch.nn.Conv3d(2, 3, 1).double().eval()
    twice = torch.rand(1, 2, 4, 4, 4)
    (tmp_path / "models").mkdir()
    torch.jit.save(torch.jit.script(other), tmp_path / "models/model.ts")
    (tmp_path / "models/model.json").write_text(json.dumps({**DESCRIPTION, "network": None, "in_channels": 2}))
    models = [load_model(tmp_path), load_model(zip_of(tmp_path / "models", tmp_path / "a.ZIP", "models/"))]
    assert [model.in_channels for model in models] == [2, 2]
    with torch.no_grad():
        assert all(torch.allclose(model.network(twice), other.float()(twice), atol=1e-6) for model in models)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_without_description(network, tmp_path):
    torch.jit.save(torch.jit.trace(network, X), tmp_path / "net.ts")
    with pytest.raises(DataError, match=r"net.json or model.json is missing next to it.*_extra_files=\{'model.json'"):
        load_model(tmp_path / "net.ts")
    (tmp_path / "net.ts").rename(tmp_path / "net.pt")
    (tmp_path / "net.json").write_text(json.dumps({**DESCRIPTION, "network": network.config}))
    with pytest.raises(DataError, match=r"rename TorchScript to \.ts"):
        load_model(tmp_path / "net.pt")


def test_a_network_of_other_size_is_not_even_built(folder, network):
    spoil(folder, network, network={**network.config, "channels": [4, 2_000_000]})
    before = torch.get_rng_state()
    with pytest.raises(DataError, match="belongs to another model"):  # nor would it fit into memory
        load_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_nothing_is_run(folder, tmp_path):
    harm = tmp_path / "harm"
    torch.save({"head.bias": Malicious(harm)}, folder / "model.pt")
    with pytest.raises(DataError, match=r"model.pt: not a model file.*never run"):
        load_model(folder)
    (folder / "model.pt").write_bytes(pickle.dumps(Malicious(harm)))
    with pytest.raises(DataError, match="not a model file"):
        load_model(folder)
    torch.save(UNet3D(1, 3, channels=(4, 8)), folder / "model.pt")
    with pytest.raises(DataError, match="pickled network"):
        load_model(folder)
    with pytest.raises(DataError, match="pickled network"):
        load_model(zip_of(folder, tmp_path / "a.zip"))
    assert not harm.exists()
    assert pickle.loads(pickle.dumps(Malicious(harm))).closed is False, "it would have"
    assert harm.exists()


def save(folder, network, drop=None, **more):
    state = {name: value for name, value in network.state_dict().items() if name != drop}
    torch.save({**state, **more}, folder / "model.pt")


def spoil(folder, form, **fields):
    (folder / "model.json").write_text(json.dumps({**DESCRIPTION, "network": form.config, **fields}))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda f, n: shutil.rmtree(f), "there is no trained model"),
        (lambda f, n: [(f / x).unlink() for x in ("model.pt",)], "none of model.pt, models/model.pt"),
        (lambda f, n: (f / "model.json").unlink(), "model.json is missing next to it"),
        (lambda f, n: (f / "model.json").write_text("{"), "not a model description"),
        (lambda f, n: (f / "model.json").write_text("[]"), "not a model description"),
        (lambda f, n: (f / "model.pt").write_bytes((f / "model.pt").read_bytes()[:500]), "not a model file"),
        (lambda f, n: torch.save([1, 2], f / "model.pt"), "found list"),
        (lambda f, n: save(f, n, drop="head.bias"), r"1 differ, for example head.bias \(absent, expected \(3,\)\)"),
        (lambda f, n: save(f, n, extra=torch.ones(2)), r"1 differ, for example extra \(\(2,\), expected absent\)"),
        (lambda f, n: save(f, n, **{"head.bias": torch.ones(3) * 1j}), "found a dict with 'head.bias': Tensor"),
        (lambda f, n: save(f, n, **{"head.bias": torch.ones(3).to_sparse()}), "found a dict with 'head.bias'"),
        (lambda f, n: torch.save({1: torch.ones(1)}, f / "model.pt"), "found a dict with 1: Tensor"),
        (lambda f, n: torch.save({}, f / "model.pt"), "found an empty dict"),
        (lambda f, n: (f / "model.json").write_bytes(b'{"class_names": ["\xe9"]}'), "not a model description"),
        (lambda f, n: (f / "model.json").write_text("{}"), "class_names"),
        (lambda f, n: spoil(f, n, network={**n.config, "channels": [4, 16]}), "belongs to another model"),
        (lambda f, n: spoil(f, n, network={**n.config, "in_channels": -1}), "no valid in_channels: -1"),
        (lambda f, n: spoil(f, n, network={**n.config, "out_channels": -1}), "no valid network.*out_channels"),
        (lambda f, n: spoil(f, n, network={**n.config, "channels": [4, 10**9]}), "no valid network"),
        (lambda f, n: spoil(f, n, network={**n.config, "norm": "none"}), "no valid network"),
        (lambda f, n: spoil(f, n, network=[1]), "no valid network"),
        (lambda f, n: spoil(f, n, in_channels="2"), "no valid in_channels: '2'"),
        (lambda f, n: spoil(f, n, spacing=[1, float("nan"), 1]), "no valid spacing"),
        (lambda f, n: spoil(f, n, spacing=2.0), "no valid spacing: 2.0"),
        (lambda f, n: spoil(f, n, network=None), "is not a UNet3D"),
        (lambda f, n: spoil(f, n, network={"depth": 7}), "no valid network"),
        (lambda f, n: spoil(f, n, network={**n.config, "out_channels": 4}), "3 class_names for a network of 4"),
        (lambda f, n: spoil(f, n, patch_size=[16, 16]), r"no valid patch_size: \[16, 16\]"),
        (lambda f, n: spoil(f, n, patch_size=None), "no valid patch_size: None"),
        (lambda f, n: spoil(f, n, spacing=[1, 0, 1]), r"no valid spacing: \[1, 0, 1\]"),
        (lambda f, n: spoil(f, n, class_values=[0, 0, 1]), "no valid class_values"),
        (lambda f, n: spoil(f, n, class_names="abc"), "no valid class_names"),
        (lambda f, n: spoil(f, n, class_values=[0, 5]), r"no valid class_values: \[0, 5\] for 3 class_names"),
        (lambda f, n: spoil(f, n, in_channels=2), "has in_channels 2 for a network of 1"),
        (lambda f, n: spoil(f, n, unlabeled=255), "no valid unlabeled: 255; expected a list of whole numbers"),
        (lambda f, n: spoil(f, n, ignore_index=[0.5], unlabeled=[]), r"no valid ignore_index: \[0.5\]"),
        (lambda f, n: spoil(f, n, annotated_slices="some"), "no valid annotated_slices: 'some'"),
        (lambda f, n: spoil(f, n, normalize="z-score"), "no valid normalize: 'z-score'; expected a list of names"),
        (lambda f, n: spoil(f, n, **{**VERSION_2, "regions": {"all": [1, 2]}}), "no valid regions"),
        (lambda f, n: spoil(f, n, **{**VERSION_2, "regions": {"all": [1, "x"]}}), "no valid regions"),
        (
            lambda f, n: spoil(f, n, **{**VERSION_2, "regions": {"all": [1, 2], "core": [2]}}),
            "has 2 regions for a network",
        ),
        (
            lambda f, n: spoil(f, n, **{**VERSION_2, "regions": {"all": [1]}}),
            "has 1 regions for 3 class_names",
        ),
        (lambda f, n: spoil(f, n, training=None), r"model.json: has no valid training: None.*Copy it again"),
        (lambda f, n: spoil(f, n, schema_version=1), r"model.json: has no in_channels; expected a whole number"),
        (lambda f, n: spoil(f, n, schema_version="1"), r"no valid schema_version: '1'; expected \d"),
        (
            lambda f, n: spoil(f, n, schema_version=99, sparse3dunet_version="9.1.0"),
            r"model.json: was written by sparse3dunet 9\.1\.0.*schema version 99.*Update sparse3dunet to that version",
        ),
        (lambda f, n: spoil(f, n, schema_version=99), "was written by sparse3dunet .unknown version."),
    ],
)
def test_faults_are_named(folder, network, fault, words):
    fault(folder, network)
    with pytest.raises(DataError, match=words):
        load_model(folder)


def test_bad_archives(tmp_path, folder):
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match="not a readable archive"):
        load_model(tmp_path / "a.zip")
    (folder / "model.pt").unlink()
    with pytest.raises(DataError, match="there is no trained model in it"):
        load_model(zip_of(folder, tmp_path / "b.zip"))
    (tmp_path / "model.ts").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not loadable as TorchScript"):
        load_model(tmp_path / "model.ts")


def flipped(file):
    """The file's content with one byte changed, within the weights."""
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 255
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
def test_damaged_weights_are_not_used(folder, network, tmp_path):
    """PyTorch itself does not look at the checksums that it writes."""
    large = UNet3D(1, 3, channels=(16, 32), norm="instance", padding="same").eval()
    spoil(folder, large)
    torch.save(large.state_dict(), folder / "model.pt")
    archive = zip_of(folder, tmp_path / "a.zip")
    archive.write_bytes(flipped(archive))
    with pytest.raises(DataError, match=r"a.zip/model.pt: cannot be read \(Bad CRC-32"):
        load_model(archive)
    (folder / "model.pt").write_bytes(flipped(folder / "model.pt"))
    torch.load(folder / "model.pt", weights_only=True)
    with pytest.raises(DataError, match=r"checksums differ at .*data/"):
        load_model(folder)
    torch.jit.save(torch.jit.trace(large, X), tmp_path / "model.ts")
    (tmp_path / "model.ts").write_bytes(flipped(tmp_path / "model.ts"))
    with pytest.raises(DataError, match=r"checksums differ at .*data/"):
        load_model(tmp_path / "model.ts")


def test_concatenated_upsampling_is_converted(folder, network):
    """A model of up to 0.10.0, whose padding was same nevertheless; the arithmetic has tests of its own."""
    fine, coarse = 4, 8
    state = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(("up", "skip"))}
    state |= {"upsample.0.weight": torch.randn(coarse, coarse, 2, 2, 2), "up.0.0.bias": torch.randn(fine)}
    state |= {"up.0.0.weight": torch.randn(fine, fine + coarse, 3, 3, 3)}
    state |= {"up.0.3.weight": torch.randn(fine, fine, 3, 3, 3), "up.0.3.bias": torch.randn(fine)}
    torch.save(state, folder / "model.pt")
    spoil(folder, network, network={**network.config, "upsampling": "concatenated"})
    loaded = load_model(folder).network.state_dict()
    assert torch.equal(loaded["skip.0.weight"], state["up.0.0.weight"][:, :fine])
    assert torch.equal(loaded["skip.0.bias"], state["up.0.0.bias"])
    assert torch.equal(loaded["up.0.2.weight"], state["up.0.3.weight"])
    torch.save({**state, "up.0.0.weight": state["up.0.0.weight"][:, :coarse]}, folder / "model.pt")
    with pytest.raises(DataError, match="belongs to another model"):
        load_model(folder)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 100_000, '{"a":' * 100_000, "[1]", "null", "1", '"a"', "", "{}", '{"schema_version": 1e999}'),
        *(f'{{"schema_version": {"9" * 4000}}}', '{"schema_version": NaN}', '{"schema_version": [[]]}', "\xff"),
        '{"schema_version": 1, "class_names": [[]], "class_values": {}, "patch_size": "aaa"}',
        f'{{"schema_version": 1, "class_names": ["a", "b"], "class_values": [0, {"9" * 999}]}}',
    ],
)
def test_any_description_ends_in_one_line(folder, text):
    (folder / "model.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"model\.json: ") as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("inside", ["model.pt", "bundle.zip"])
def test_bombs_are_not_unpacked(folder, tmp_path, inside):
    path = tmp_path / inside
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("models/model.pt", bytes(2**27))
    (tmp_path / "model.json").write_bytes((folder / "model.json").read_bytes())
    with pytest.raises(DataError, match=f"{inside}: .* would unpack to 134217728"):
        load_model(path)


def test_only_files_are_models(folder):
    (folder / "model.json").unlink()
    os.mkfifo(folder / "model.json")
    with pytest.raises(DataError, match=r"model\.json"):
        load_model(folder)
