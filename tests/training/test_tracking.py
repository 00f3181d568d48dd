"""What a training tells TensorBoard and MLflow."""

import sqlite3

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import run_bundle, run_training


def test_tensorboard_has_scalars_pictures_and_the_configuration(trained):
    events = EventAccumulator(str(trained / "eval/tensorboard"))
    events.Reload()
    assert {"loss", "val_mean_dice", "dice_all"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    (picture,) = events.Tags()["images"]
    assert picture.startswith("pictures/case_")
    assert [event.step for event in events.Images(picture)] == [1, 2]
    (text,) = events.Tensors("configuration/text_summary")
    assert "largest_patch_size" in text.tensor_proto.string_val[0].decode()


def test_the_configuration_is_kept_and_runs_again(trained, tmp_path):
    """With all that the command line set."""
    config = trained / "eval/config.yaml"
    content = yaml.safe_load(config.read_text())
    assert content["largest_patch_size"] == [16, 16, 16]
    assert content["network_def"]["channels"] == [4, 8, 8]
    places = ("--output_dir", tmp_path / "eval", "--ckpt_dir", tmp_path / "models")
    result = run_bundle("run", "training", "--config_file", config, *places, real=True)  # by its own hash seed
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "models/model.pt").read_bytes() == (trained / "models/model.pt").read_bytes()


def test_mlflow(trained, tmp_path):
    pytest.importorskip("mlflow", reason="needs mlflow-skinny, sqlalchemy and alembic (the extra `tracking`)")
    result = run_training(trained / "dataset", tmp_path, "--tracking", "mlflow", "--experiment_name", "tiny")
    assert result.returncode == 0, result.stderr
    with sqlite3.connect(tmp_path / "eval/mlruns.db") as database:
        metrics = database.execute("select key, step from metrics").fetchall()
        assert database.execute("select count(*) from experiments where name = 'tiny'").fetchone() == (1,)
    assert sorted(step for key, step in metrics if key == "train_loss") == [1, 2, 3, 4]
    assert sorted(step for key, step in metrics if key == "dice_annotated") == [1, 2]
