"""What MONAI's tools demand of the bundle."""

import json

import pytest
from monai.bundle import create_workflow

from tests.conftest import ROOT, run_bundle

CONFIGS = ROOT / "bundle/configs"
TRAIN, INFERENCE = CONFIGS / "train.yaml", CONFIGS / "inference.yaml"


def test_verify_metadata():
    metadata = CONFIGS / "metadata.json"
    schema = ROOT / "tests/metadata_schema.json"
    result = run_bundle("verify_metadata", "--meta_file", metadata, "--filepath", schema)
    assert result.returncode == 0, result.stderr
    content = json.loads(metadata.read_text())
    assert content["version"] in content["changelog"]


@pytest.mark.parametrize("config", [TRAIN, INFERENCE], ids=["train", "inference"])
def test_verify_net_in_out(config, tmp_path):
    """Before any training, from the checkout's root."""
    model = (
        ("--model_file", tmp_path / "none.pt")
        if config == INFERENCE
        else ("--class_names", "['a','b','c']", "--num_channels", 1)
    )
    result = run_bundle("verify_net_in_out", "network_def", "--config_file", config, "--meta_file",
                        CONFIGS / "metadata.json", "--n", 2, "--device", "cpu", *model)  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_check_properties(tmp_path, monkeypatch):
    """In a folder where nothing has been trained or prepared."""
    for name in ("bundle", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle/configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    for config, kind in ((INFERENCE, "infer"), (TRAIN, "train")):
        workflow = create_workflow(
            config_file=str(config), workflow_type=kind, meta_file=str(CONFIGS / "metadata.json")
        )
        assert workflow.check_properties() == []
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["mni152"]


def test_network_is_defined_once():
    """Neither overlay nor inference spells the network out again; presets set some of its arguments."""
    definitions = [path.name for path in CONFIGS.glob("*.yaml") if "out_channels:" in path.read_text()]
    assert definitions == ["train.yaml"]
