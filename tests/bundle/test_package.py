"""The packaged bundle as a thing: what is in it, that it is the same each time, what is refused."""

import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
import zipfile
from pathlib import Path

import monai
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose

import sparse3dunet
from sparse3dunet.bundle import package as packaging
from sparse3dunet.bundle.contents import with_values
from sparse3dunet.io.writing import draft_path
from sparse3dunet.models.loading import load_model
from sparse3dunet.networks import UNet3D
from sparse3dunet.transforms import NormalizeImage
from tests.conftest import ROOT, bundle_environment, run_package
from tests.forked import start_module
from tests.models.test_loading import VERSION_2

NAME = packaging.DEFAULT_NAME
DESCRIPTION = {"class_names": ["background", "vessel"], "class_values": [0, 300], "patch_size": [16, 16, 8]}


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def model_folder(folder, description=DESCRIPTION, **network):
    """As training leaves it."""
    folder.mkdir(parents=True)
    given = {"in_channels": 1, "out_channels": 2, "channels": (4, 8), "norm": "instance", "padding": "same", **network}
    made = UNet3D(**given)
    torch.save(made.state_dict(), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps({**description, "network": made.config}))
    return folder


def fake_script(model, folder):
    """In the place of TorchScript where a test is of something else: it takes seconds."""
    shutil.copy(folder / "models/model.pt", folder / "models/model.ts")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(packaging, "_write_torchscript", fake_script)


def test_contents(packaged, trained):
    found = set(files_of(packaged))
    configs = {path.stem for path in (ROOT / "bundle/configs").glob("*.yaml")}
    code = {p.relative_to(ROOT / "pipeline").as_posix() for p in (ROOT / "pipeline/sparse3dunet").rglob("*.py")}
    code = {name for name in code if not name.startswith("sparse3dunet/annotate/browser/")}
    expected = {f"configs/{name}{suffix}" for name in configs for suffix in (".yaml", ".json")} | code
    expected |= {"configs/metadata.json", "configs/logging.conf", "sparse3dunet/py.typed", "LICENSE", "SHA256SUMS"}
    expected |= {"sparse3dunet/report/templates/densify.html.j2"}
    expected |= {"docs/README.md", "docs/data_license.txt"} | {f"models/model.{kind}" for kind in ("pt", "json", "ts")}
    assert found == expected
    assert "sparse3dunet/bundle/package.py" in found
    with zipfile.ZipFile(packaged.parent / f"{NAME}-{sparse3dunet.__version__}.zip") as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    assert inside == {f"{NAME}/{name}": path.read_bytes() for name, path in files_of(packaged).items()}
    for line in (packaged / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((packaged / name).read_bytes()).hexdigest() == digest
    state = torch.load(packaged / "models/model.pt", weights_only=True)
    trained_state = torch.load(trained / "models/model.pt", weights_only=True)
    assert all(torch.equal(state[key], trained_state[key]) for key in trained_state)
    assert "was not given" in (packaged / "docs/data_license.txt").read_text()


def test_the_model_comes_out_as_it_went_in(packaged, trained):
    """From the folder, the archive, and TorchScript, whose checksums load_model tests."""
    x = torch.rand(2, 1, 24, 16, 8, generator=torch.Generator().manual_seed(1))
    archive = packaged.parent / f"{NAME}-{sparse3dunet.__version__}.zip"
    places = [trained / "models", packaged, archive, packaged / "models/model.ts"]
    models = [load_model(place) for place in places]
    with torch.no_grad():
        outputs = [model.network(x) for model in models]
    assert all(torch.allclose(output, outputs[0], atol=1e-5) for output in outputs)
    assert all(model.description == models[0].description for model in models)
    content = bytearray((packaged / "models/model.ts").read_bytes())
    assert b"debug_pkl" not in content


def test_metadata_and_configs_are_the_models(packaged):
    metadata = json.loads((packaged / "configs/metadata.json").read_text())
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert (image["num_channels"], pred["num_channels"]) == (1, 3)
    assert pred["channel_def"] == {"0": "background", "1": "shell", "2": "core"}
    assert image["spatial_shape"] == pred["spatial_shape"] == ["8*n"] * 3  # 4*1 is too small to be normalised
    assert metadata["pred_classes"] == "background, shell, core"
    assert metadata["version"] in metadata["changelog"]
    train = yaml.safe_load((packaged / "configs/train.yaml").read_text())
    assert train["network_def"]["channels"] == [4, 8, 8]
    assert train["declared"]["ignore_index"] == [3]
    standalone = (packaged / "configs/standalone.yaml").read_text()
    values = yaml.safe_load(standalone)
    assert (values["roi_size"], values["class_values"], values["spacing"]) == ([16] * 3, [0, 1, 2], None)
    assert "sparse3dunet" not in re.sub(r"#.*", "", standalone)
    page = (packaged / "docs/README.md").read_text()
    assert "| 2 | core | 2 |" in page
    assert "MNI152" not in page


def test_same_again(packaged, trained, tmp_path):
    """From another folder, at another time, under another hash seed, with the model named by its file.

    But TorchScript, which orders constants as it likes, and what has it in it.
    """
    models = trained / "models"
    result = run_package(os.path.relpath(models / "model.pt", tmp_path), "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = files_of(packaged), files_of(tmp_path / "out" / NAME)
    assert first.keys() == second.keys()
    differ = {name for name in first if first[name].read_bytes() != second[name].read_bytes()}
    assert differ <= {"models/model.ts", "SHA256SUMS"}


def test_nothing_of_the_machine(packaged, trained):
    """Neither folders, nor host and user where these are words that would stand out."""
    words = {str(ROOT), str(trained), str(packaged.parent), sys.prefix, str(Path(monai.__file__).parents[1])}
    words |= {str(Path.home())} if len(Path.home().parts) > 2 else set()
    words |= {word for word in (socket.gethostname(), getpass.getuser()) if len(word) > 5}
    for name, path in files_of(packaged.parent).items():
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], name
        if path.suffix not in (".py", ".pt", ".ts", ".zip"):
            assert not re.search(rb"(?<![\w.:/*])/(home|root|tmp|usr|work|var|opt|mnt|venv)/", content), name


def test_reports_what_it_did(trained, tmp_path, capsys, quick):
    done = packaging.package(trained / "models", tmp_path, "mine", version="7.0.1")
    assert (done.folder, done.archive, done.notes) == (tmp_path / "mine", tmp_path / "mine-7.0.1.zip", [])
    metadata = json.loads((done.folder / "configs/metadata.json").read_text())
    assert (metadata["name"], metadata["version"]) == ("mine", "7.0.1")
    assert "mine" in metadata["changelog"]["7.0.1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine-7.0.1.zip"]


def test_other_models(tmp_path, quick):
    """Several channels, odd strides, spacing, class values, unlabeled value."""
    description = {**DESCRIPTION, "spacing": [1, 1, 2.5], "unlabeled": [255], "annotated_slices": "axial"}
    folder = model_folder(tmp_path / "m", description, in_channels=2, strides=((2, 2, 1),), norm="batch")
    (tmp_path / "licence").write_text("CC0")
    bundle = packaging.package(folder, tmp_path / "out", data_license=tmp_path / "licence").folder
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["spatial_shape"]) == (2, ["2*n", "2*n", "1*n"])
    assert image["channel_def"] == {"0": "channel 0", "1": "channel 1"}
    assert "0: background, 300: vessel" in metadata["label_classes"]
    train = yaml.safe_load((bundle / "configs/train.yaml").read_text())
    assert train["declared"] == {
        "class_names": ["background", "vessel"],
        "class_values": [0, 300],
        "ignore_index": [255],
        "num_channels": 2,
    }
    assert (train["spacing"], train["annotated_slices"]) == ([1, 1, 2.5], "axial")
    assert json.loads((bundle / "configs/standalone.json").read_text())["spacing"] == [1, 1, 2.5]
    assert (bundle / "docs/data_license.txt").read_text() == "CC0"


@pytest.mark.parametrize("intensity", [None, {"lower": -80, "upper": 240.5, "mean": 60, "std": 40}])
def test_every_config_normalises_as_the_model(tmp_path, quick, intensity):
    """Also standalone.yaml, which has none of this package's transforms."""
    description = {**VERSION_2, **DESCRIPTION, "intensity": intensity}
    folder = model_folder(tmp_path / "m", description, kernel_sizes=((3, 3, 1), 3))
    bundle = packaging.package(folder, tmp_path / "out").folder
    image = MetaTensor(torch.linspace(-1000, 1000, 60).view(1, 3, 4, 5))
    expected = NormalizeImage(intensity)(image)
    for name in ("train", "inference", "standalone"):
        config = ConfigParser.load_config_file(bundle / f"configs/{name}.yaml")
        parser = ConfigParser({**config, "bundle_root": str(bundle)})
        found = Compose(parser.get_parsed_content("normalize"))({"image": image})["image"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    text = (bundle / "docs/README.md").read_text()
    assert ("clipped to -80 ... 240.5" in text) == (intensity is not None)
    train = yaml.safe_load((bundle / "configs/train.yaml").read_text())
    assert train["network_def"]["kernel_sizes"] == [[3, 3, 1], [3, 3, 3]]


def test_valid_convolutions_have_no_standalone_config(tmp_path, capsys):
    folder = model_folder(tmp_path / "m", {**DESCRIPTION, "patch_size": [28, 28, 28]}, padding="valid")
    done = packaging.package(folder, tmp_path / "out")
    assert not list(done.folder.glob("configs/standalone*"))
    assert len(done.notes) == 1
    assert "MONAI alone cannot run" in done.notes[0]
    extra = {"inference.json": "", "metadata.json": ""}
    torch.jit.load(done.folder / "models/model.ts", _extra_files=extra)
    assert not extra["inference.json"]
    formats = json.loads(extra["metadata.json"])["network_data_format"]
    assert formats["inputs"]["image"]["spatial_shape"] == [28, 28, 28]
    assert formats["outputs"]["pred"]["spatial_shape"] == [12, 12, 12]


def test_the_built_in_model_brings_its_licence(tmp_path, quick):
    names = ["background", "gray matter", "white matter"]
    description = {**DESCRIPTION, "class_names": names, "class_values": [0, 1, 2], "training": ["mni152"]}
    folder = model_folder(tmp_path / "m", description, out_channels=3)
    bundle = packaging.package(folder, tmp_path / "out").folder
    assert "McConnell Brain Imaging Centre" in (bundle / "docs/data_license.txt").read_text()
    assert "MNI152" in (bundle / "docs/README.md").read_text()


def test_packages_from_the_packaged_bundle(packaged, trained, tmp_path, monkeypatch, quick):
    """There, configs are around the code."""
    monkeypatch.setattr(packaging.contents, "CODE", packaged / "sparse3dunet")
    again = packaging.package(trained / "models", tmp_path).folder
    first, second = files_of(packaged), files_of(again)
    assert first.keys() == second.keys()
    differ = {name for name in first if first[name].read_bytes() != second[name].read_bytes()}
    assert differ == {"models/model.ts", "SHA256SUMS"}  # the first of these was left out here
    monkeypatch.setattr(packaging.contents, "CODE", tmp_path / "nowhere")
    with pytest.raises(packaging.DataError, match="the bundle's configs are missing"):
        packaging.package(trained / "models", tmp_path / "other")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{models}/nowhere", "-o", "{out}"), "there is no trained model"),
        (("{bundle}/models/model.ts", "-o", "{out}"), "model.pt"),
        (("{models}", "-o", "{out}", "--name", "../up"), "--name is '../up'"),
        (("{models}", "-o", "{out}", "--version", "one"), "--version is 'one'"),
        (("{models}", "-o", "{out}", "--data-license", "{out}/none"), "licence cannot be read"),
        (("{models}", "-o", "{models}/model.pt"), "cannot be written there"),
    ],
)
def test_refusals(trained, packaged, tmp_path, error_of, arguments, words):
    places = {"models": trained / "models", "bundle": packaged, "out": tmp_path / "out"}
    assert words in error_of("package", *(argument.format(**places) for argument in arguments))
    assert not (tmp_path / "out").exists()


def test_another_normalisation_or_network_is_refused(tmp_path):
    folder = model_folder(tmp_path / "m", {**DESCRIPTION, "normalize": ["ScaleIntensityd(keys=('image',))"]})
    with pytest.raises(packaging.DataError, match=r"another normalisation.*ScaleIntensityd"):
        packaging.package(folder, tmp_path / "out")


def test_nothing_is_overwritten_or_deleted_unasked(trained, packaged, tmp_path, quick):
    models = trained / "models"
    archive = f"{NAME}-{sparse3dunet.__version__}.zip"
    packaging.package(models, tmp_path)
    before = {name: path.read_bytes() for name, path in files_of(tmp_path).items()}
    with pytest.raises(packaging.DataError, match=r"exists already.*--overwrite"):
        packaging.package(models, tmp_path)
    packaging.package(models, tmp_path, overwrite=True)
    assert {name: path.read_bytes() for name, path in files_of(tmp_path).items()} == before

    added = tmp_path / NAME / "models/last.pt"
    added.write_text("a training went on here")
    with pytest.raises(packaging.DataError, match=r"last\.pt was added to the bundle or changed"):
        packaging.package(models, tmp_path, overwrite=True)
    added.unlink()
    changed = tmp_path / NAME / "docs/README.md"
    changed.write_text("corrected by hand")
    with pytest.raises(packaging.DataError, match=r"README\.md was added to the bundle or changed"):
        packaging.package(models, tmp_path, overwrite=True)
    assert changed.read_text() == "corrected by hand"
    for sums in (b"garbage", b"\xff\xfe  docs/README.md\n"):
        (tmp_path / NAME / "SHA256SUMS").write_bytes(sums)
        with pytest.raises(packaging.DataError, match="was added to the bundle or changed"):
            packaging.package(models, tmp_path, overwrite=True)

    other = tmp_path / "other"
    (other / NAME).mkdir(parents=True)
    (other / NAME / "thesis.txt").write_text("precious")
    with pytest.raises(packaging.DataError, match="is not a bundle of this command"):
        packaging.package(models, other, overwrite=True)
    (other / NAME / "thesis.txt").rename(other / archive)
    (other / NAME).rmdir()
    with pytest.raises(packaging.DataError, match="zip is not a bundle of this command"):
        packaging.package(models, other, overwrite=True)
    (other / archive).unlink()
    (other / NAME).symlink_to(packaged)
    with pytest.raises(packaging.DataError, match="is not a bundle of this command"):
        packaging.package(models, other, overwrite=True)
    assert (packaged / "SHA256SUMS").is_file()


def test_a_licence_is_no_pipe(trained, tmp_path):
    os.mkfifo(tmp_path / "licence")
    with pytest.raises(packaging.DataError, match="licence is a named pipe"):
        packaging.package(trained / "models", tmp_path / "out", data_license=tmp_path / "licence")


def test_a_failed_run_leaves_nothing(trained, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(
        packaging, "_write_zip", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(packaging.DataError, match="No space left on device"):
        packaging.package(trained / "models", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_tells_of_the_machine_is_refused(trained, tmp_path, quick):
    (tmp_path / "licence").write_text(f"see {tmp_path}/out/terms.txt")
    with pytest.raises(packaging.DataError, match=r"docs/data_license\.txt would contain"):
        packaging.package(trained / "models", tmp_path / "out", data_license=tmp_path / "licence")
    assert not list((tmp_path / "out").iterdir())


def test_a_place_whose_path_is_in_the_source_is_no_reason(tmp_path):
    """The configs speak of '/models/model.pt' themselves; a container may have it."""
    source = ROOT / "bundle"
    shutil.copytree(source / "configs", tmp_path / "configs")
    packaging._check_neutral(tmp_path, source, [Path("/models/model.pt"), Path("/eval/predictions")])
    with (tmp_path / "configs/train.yaml").open("a") as file:
        file.write("# /models/model.pt\n")
    with pytest.raises(packaging.DataError, match=r"configs/train\.yaml would contain /models/model\.pt"):
        packaging._check_neutral(tmp_path, source, [Path("/models/model.pt")])


def test_a_killed_run_leaves_no_half_bundle(trained, tmp_path):
    """Killed without warning while it writes; the next run removes the draft."""
    arguments = ("package", trained / "models", "-o", tmp_path)
    process = start_module("sparse3dunet", *arguments, cwd=ROOT, environment=bundle_environment())
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f".{NAME}.*.part/{NAME}/models/model.pt")):
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".part")
    with packaging._draft(draft_path(tmp_path / NAME, "")) as draft:
        assert list(tmp_path.iterdir()) == [draft]
        assert list(draft.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_configs_are_edited_as_text():
    text = "# top\na: 1   # why\nb:\n  c: 2\n  # in b\n\nd: [1, 2]\n"
    changed = with_values(text, {"a": None, "b": {"x": [1], "y": "@z"}, "d": "t"})
    assert yaml.safe_load(changed) == {"a": None, "b": {"x": [1], "y": "@z"}, "d": "t"}
    assert "# top\n" in changed
    assert "# why\n" in changed
    assert with_values(changed, {"a": None, "b": {"x": [1], "y": "@z"}, "d": "t"}) == changed
    small = {"a": [4e-05, 1e-07, 1.0], "b": {"x": 3e-06, "y": "1e-5"}}
    assert yaml.safe_load(with_values(text, small)) == {**yaml.safe_load(text), **small}
    with pytest.raises(KeyError):
        with_values(text, {"c": 1})
