"""The recipe of augmentation trains, with the bundle's deformation and with MONAI's, and keeps the data whole."""

import importlib
import inspect
import json
import re

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose, Rand3DElasticd

from sparse3dunet.bundle.running import parse_settings
from sparse3dunet.inference.slabs import SlabInferer
from sparse3dunet.losses import MaskedDiceCELoss
from sparse3dunet.networks import UNet3D
from sparse3dunet.transforms import ChannelWised, RandBSplineElasticd
from tests.conftest import ROOT, TINY, make_dataset, run_bundle

CONFIGS = ROOT / "bundle/configs"


def preprocessing(root, *overlays, **changes):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.yaml", *overlays)])
    parser.update({"dataset_dir": str(root), "val_fraction": 0, "patch_size": [16, 16, 16], **changes})
    return parser.get_parsed_content("train#dataset").data, parser.get_parsed_content("train#preprocessing")


def steps_of(transform):
    """All transforms, those within others too."""
    yield transform
    for inner in (*getattr(transform, "transforms", ()), getattr(transform, "transform", None)):
        if inner is not None:
            yield from steps_of(inner)


def test_the_overlay_trains(tmp_path):
    make_dataset(tmp_path / "dataset")
    configs = str([str(CONFIGS / "train.yaml"), str(ROOT / "benchmarks/rand3delastic.yaml")])
    places = ("--dataset_dir", tmp_path / "dataset", "--output_dir", tmp_path, "--ckpt_dir", tmp_path / "models")
    result = run_bundle("run", "training", "--config_file", configs, *places, *TINY, "--margin", 4)
    assert result.returncode == 0, result.stderr
    assert re.search(r"epoch 2/2 .* waiting for data \d+ %  Dice", result.stdout)
    assert json.loads((tmp_path / "models/model.json").read_text())


def values(*overlays):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.yaml") for name in ("train", *overlays)])
    return parser


def test_presets_of_minutes():
    assert values("cpu")["minutes"] == values("gpu")["minutes"] == 10
    usual, halved, densify = (values(*names) for names in ((), ("cpu",), ("densify",)))
    for name in ("displacement", "rotate_range", "scale_range"):
        assert halved[f"train#deform#{name}"] == densify[f"train#deform#{name}"] == usual[f"train#deform#{name}"] / 2


@pytest.fixture
def study(monkeypatch):
    """benchmarks/recipe.py"""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("recipe")


def test_each_line_of_the_study_is_a_change(study):
    preset = values("cpu")
    preset["loss"] |= {name: p.default for name, p in inspect.signature(MaskedDiceCELoss).parameters.items()}
    for line, text in study.LINES.items():
        settings = parse_settings(study.settings_in(f"--overlay cpu {text}"))
        assert settings.pop("overlay") == "cpu"
        assert bool(settings) == (line != study.DENSE)
        for name, value in settings.items():
            assert preset[name] != value, line


def test_settings_of_the_study_are_looked_at_before_it_begins(study):
    with pytest.raises(SystemExit, match=r"--learning_rat: there is no such setting\. Did you mean"):
        study.settings_in("--overlay cpu --learning_rat 0.1")
    with pytest.raises(SystemExit, match="--keep is set by the benchmark itself"):
        study.settings_in("--keep best")
    with pytest.raises(SystemExit, match="--label_dir is set by the benchmark itself"):
        study.settings_in("--label_dir x")
    assert study.settings_in("--network_def#channels '[8, 16]'") == ["--network_def#channels", "[8, 16]"]


def test_the_study_leaves_the_validation_volumes_alone(study, tmp_path):
    names = [f"case_{n:03}" for n in range(200)]
    (tmp_path / "split.json").write_text(json.dumps({"train": names[:160], "val": names[160:]}))
    split = study.development_split(tmp_path)
    assert split == study.development_split(tmp_path)
    assert (len(split["train"]), len(split["val"])) == (120, 40)
    assert sorted(split["train"] + split["val"]) == names[:160]


@pytest.mark.parametrize(
    ("preset", "settings", "told"),
    [
        ("cpu", ("--minutes", 0.05, "--batch_size", 2), {"padding": "same", "halved": False}),
        ("gpu", ("--minutes", 0.05, "--batch_size", 2), {"padding": "same", "channels": [4, 8, 8]}),
        (
            "paper",
            ("--patch_size", "[44,44,44]", "--minutes", "None"),
            {"padding": "valid", "norm": ["batch", {"track_running_stats": False}]},
        ),
    ],
)
def test_presets_train(tmp_path, preset, settings, told):
    """In small, and on a CPU."""
    make_dataset(tmp_path / "dataset")
    configs = str([str(CONFIGS / "train.yaml"), str(CONFIGS / f"{preset}.yaml")])
    places = ("--dataset_dir", tmp_path / "dataset", "--output_dir", tmp_path, "--ckpt_dir", tmp_path / "models")
    options = [*places, *TINY, "--device", "cpu", *settings]
    result = run_bundle("run", "training", "--config_file", configs, *options)
    assert result.returncode == 0, result.stderr
    network = json.loads((tmp_path / "models/model.json").read_text())["network"]
    assert {key: network[key] for key in told} == told
    lines = (tmp_path / "training.csv").read_text().splitlines()
    assert len(lines) > 1
    assert np.isfinite(float(lines[-1].split(",")[lines[0].split(",").index("loss")]))


def test_the_papers_preset_is_its_network_and_optimizer():
    parser = values("paper")
    parser.update({"num_channels": 3, "num_classes": 3, "class_weights": None})
    network = parser.get_parsed_content("network_def")
    assert network.output_size(parser["patch_size"]) == (44, 44, 28)  # figure 2
    assert 19_069_955 < sum(p.numel() for p in network.parameters()) < 19_069_955 + 5_000
    optimizer, scheduler = (parser.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    assert isinstance(optimizer, torch.optim.SGD)
    for _ in range(10):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == parser["learning_rate"]
    assert parser["max_epochs"] * parser["epoch_length"] == 70_000  # page 6


def test_each_recipe_has_its_elastic_deformation(tmp_path):
    root = make_dataset(tmp_path, 1)
    _, ours = preprocessing(root)
    _, monais = preprocessing(root, ROOT / "benchmarks/rand3delastic.yaml")
    assert not any(isinstance(step, Rand3DElasticd) for step in steps_of(ours))
    (elastic,) = (step for step in steps_of(ours) if isinstance(step, RandBSplineElasticd))
    assert elastic.elastic.prob > 0
    assert (elastic.elastic.displacement > 0).all()
    assert any(isinstance(step, Rand3DElasticd) for step in steps_of(monais))
    (crop,) = (step for step in steps_of(monais) if isinstance(step, RandBSplineElasticd))
    assert crop.elastic.prob == 0


@pytest.mark.parametrize("overlay", [(), (ROOT / "benchmarks/rand3delastic.yaml",)])
def test_a_recipe_writes_into_nothing_that_is_cached(tmp_path, overlay):
    """Volumes are kept in memory and not copied for each patch: so no random transform may change them."""
    data, transform = preprocessing(make_dataset(tmp_path, 1), *overlay)
    first_random = next(n for n, step in enumerate(transform.transforms) if hasattr(step, "randomize"))
    cached = transform(data[0], end=first_random)
    kept = {key: torch.as_tensor(cached[key]).clone() for key in ("image", "label", "weight")}
    for seed in range(30):
        transform.set_random_state(seed)
        patch = transform(cached, start=first_random)
        patch["image"] += 1
    assert all(torch.equal(torch.as_tensor(cached[key]), kept[key]) for key in kept)
    assert set(patch) == {"image", "label", "weight"}


def test_gray_values_change_channel_by_channel(tmp_path):
    """Of two equal channels and the label, the chain changes the channels, unlike each other, and not the label."""
    _, transform = preprocessing(make_dataset(tmp_path, 1))
    (chain,) = (step for step in transform.transforms if isinstance(step, ChannelWised))
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 12, 12, 12))).float().expand(2, -1, -1, -1)
    label = torch.ones(1, 12, 12, 12)
    chain.set_random_state(0)
    unlike = 0
    for _ in range(20):
        patch = chain({"image": image, "label": label})
        assert patch["image"].isfinite().all()
        assert patch["label"] is label
        unlike += not torch.equal(patch["image"][0], patch["image"][1])
    assert unlike > 15


def test_low_resolution_leaves_a_blob_where_it_was(tmp_path):
    """With MONAI's default, nearest, it moves by up to half a voxel of the low resolution, its label does not."""
    _, transform = preprocessing(make_dataset(tmp_path, 1))
    (chain,) = (step for step in transform.transforms if isinstance(step, ChannelWised))
    (low,) = (step for step in steps_of(chain.channel_wise) if type(step).__name__ == "RandSimulateLowResolution")
    assert isinstance(chain.channel_wise.transform, Compose)
    low.prob = 1.0
    places = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    ball = torch.sigmoid(6 - (places - 15.5).norm(dim=0))[None]
    for seed in range(5):
        blurred = low.set_random_state(seed)(ball)
        middle = (places * blurred).sum(dim=(1, 2, 3)) / blurred.sum()
        assert (middle - 15.5).abs().max() < 0.1


@pytest.mark.parametrize("config", ["train.yaml", "inference.yaml"])
def test_what_lies_outside_is_the_same_in_training_and_in_prediction(config):
    """Where volumes are smaller than the patch, another padding would be another image: it costs 0.02 of Dice."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / config))
    inferer = dict(parser["validate#inferer" if config == "train.yaml" else "inferer"])
    assert inferer.pop("_target_") == "sparse3dunet.inference.SlabInferer"
    network = UNet3D(1, 2, channels=(4, 8), norm="instance", padding="same").eval()
    x = torch.rand(1, 1, 8, 9, 10)
    ours = SlabInferer(roi_size=(12, 12, 12), border=inferer.get("border"), bfloat16=False)
    theirs = SlidingWindowInferer((12, 12, 12), padding_mode="replicate", mode="gaussian")
    with torch.no_grad():
        assert torch.allclose(ours(x, network), theirs(x, network), atol=1e-5)
    patch = RandBSplineElasticd("image", spatial_size=12, prob=0)({"image": torch.rand(1, 8, 8, 8)})["image"]
    assert torch.equal(patch[:, 0], patch[:, 2])
