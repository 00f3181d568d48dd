"""Models from whatever holds them; nothing that could run is ever loaded."""

import json
import pickle
import shutil
import zipfile

import pytest
import torch

from sparse3dunet.errors import DataError
from sparse3dunet.models import load_model
from sparse3dunet.networks import UNet3D

DESCRIPTION = {"class_names": ["background", "shell", "core"], "class_values": [0, 5, 300], "patch_size": [16, 16, 16]}
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
    assert (model.class_names, model.class_values) == (DESCRIPTION["class_names"], [0, 5, 300])
    assert (model.patch_size, model.spacing, model.in_channels) == ([16, 16, 16], None, 1)
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
        assert torch.allclose(model.network(X), network(X), atol=1e-6)
    assert hasattr(model.network, "output_size") == described


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
    assert not harm.exists()


def spoil(folder, form, **fields):
    (folder / "model.json").write_text(json.dumps({**DESCRIPTION, "network": form.config, **fields}))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda f, n: shutil.rmtree(f), "there is no trained model"),
        (lambda f, n: [(f / x).unlink() for x in ("model.pt",)], "none of model.pt, models/model.pt"),
        (lambda f, n: (f / "model.json").unlink(), "model.json is missing beside it"),
        (lambda f, n: (f / "model.json").write_text("{"), "describes no model"),
        (lambda f, n: (f / "model.json").write_text("[]"), "describes no model"),
        (lambda f, n: (f / "model.pt").write_bytes((f / "model.pt").read_bytes()[:500]), "not a model file"),
        (lambda f, n: torch.save([1, 2], f / "model.pt"), "found list"),
        (lambda f, n: spoil(f, n, network={**n.config, "channels": [4, 16]}), "belongs to another model"),
        (lambda f, n: spoil(f, n, network=None), "was no UNet3D"),
        (lambda f, n: spoil(f, n, network={"depth": 7}), "no valid network"),
        (lambda f, n: spoil(f, n, network={**n.config, "out_channels": 4}), "3 class_names for a network of 4"),
        (lambda f, n: spoil(f, n, patch_size=[16, 16]), r"no valid patch_size: \[16, 16\]"),
        (lambda f, n: spoil(f, n, patch_size=None), "no valid patch_size: None"),
        (lambda f, n: spoil(f, n, spacing=[1, 0, 1]), r"no valid spacing: \[1, 0, 1\]"),
        (lambda f, n: spoil(f, n, class_values=[0, 0, 1]), "no valid class_values"),
        (lambda f, n: spoil(f, n, class_names="abc"), "no valid class_names"),
    ],
)
def test_faults_are_named(folder, network, fault, words):
    fault(folder, network)
    with pytest.raises(DataError, match=words):
        load_model(folder)


def test_bad_archives(tmp_path, folder):
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match="no archive that can be read"):
        load_model(tmp_path / "a.zip")
    (folder / "model.pt").unlink()
    with pytest.raises(DataError, match="there is no trained model in it"):
        load_model(zip_of(folder, tmp_path / "b.zip"))
    (tmp_path / "model.ts").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no TorchScript that can be loaded"):
        load_model(tmp_path / "model.ts")
