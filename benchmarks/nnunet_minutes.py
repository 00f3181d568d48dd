"""Train nnU-Net for some minutes and score it; for benchmarks/hippocampus.py, in an environment with nnunetv2.

    python nnunet_minutes.py DATA LABELS OUT --minutes 3 --seed 0

nnU-Net's own planning, preprocessing, 3d_fullres network, augmentation, loss (with its ignore label) and polynomial
learning rate, which goes by the share of the minutes that has passed instead of the share of its epochs; one validation
at the end, for which it chooses nothing. Planning and preprocessing are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

NUMBER, NAME = 4, "Dataset004_Hippocampus"


def prepare(data: Path, labels: Path, out: Path, split: dict[str, list[str]]) -> None:
    """Write the data set in nnU-Net's layout, plan and preprocess it."""
    raw = out / "raw" / NAME
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
    for name in split["train"]:
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", raw / "imagesTr" / f"{name}_0000.nii.gz")
        shutil.copy(labels / f"{name}.nii.gz", raw / "labelsTr" / f"{name}.nii.gz")
    for name in split["val"]:
        shutil.copy(data / "imagesTr" / f"{name}.nii.gz", raw / "imagesTs" / f"{name}_0000.nii.gz")
    classes = {"background": 0, "anterior": 1, "posterior": 2}
    if "sparse" in labels.name:
        classes["ignore"] = 3
    description = {
        "channel_names": {"0": "MRI"},
        "labels": classes,
        "numTraining": len(split["train"]),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    command = (
        "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry as f; f()"
    )
    options = ["-d", str(NUMBER), "-c", "3d_fullres", "-np", "2", "-npfp", "2"]
    subprocess.run([sys.executable, "-c", command, *options], check=True)


def train(minutes: float, seed: int):
    """Train for the given minutes; return the trainer and the number of iterations."""
    import numpy as np
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(seed)
    np.random.seed(seed)
    torch.set_num_threads(os.cpu_count() or 1)
    trainer = get_trainer_from_args(
        str(NUMBER), "3d_fullres", "all", "nnUNetTrainer", "nnUNetPlans", device=torch.device("cpu")
    )
    trainer.on_train_start()
    trainer.network.train()
    next(trainer.dataloader_train)  # its processes start
    started, iterations = time.perf_counter(), 0
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        for group in trainer.optimizer.param_groups:
            group["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        trainer.train_step(next(trainer.dataloader_train))
        iterations += 1
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):
            loader._finish()  # its processes
    return trainer, iterations


def score(trainer, data: Path, out: Path, names: list[str]) -> float:
    """Mean Dice of the foreground classes."""
    import nibabel as nib
    import numpy as np
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), perform_everything_on_device=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )
    predictor.network.eval()
    if hasattr(predictor.network, "decoder"):
        predictor.network.decoder.deep_supervision = False
    predictor.list_of_parameters = [predictor.network.state_dict()]
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(str(out / "raw" / NAME / "imagesTs"), str(folder), save_probabilities=False)
    dice = []
    for name in names:
        found, true = (np.asarray(nib.load(f / f"{name}.nii.gz").dataobj) for f in (folder, data / "labelsTr"))
        dice += [2 * ((found == k) & (true == k)).sum() / ((found == k).sum() + (true == k).sum()) for k in (1, 2)]
    return float(np.mean(dice))


def main() -> None:
    """Prepare, train, score, and write result.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    for name, folder in {
        "nnUNet_raw": "raw",
        "nnUNet_preprocessed": "preprocessed",
        "nnUNet_results": "results",
    }.items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(out / folder)
    os.environ["nnUNet_compile"] = "f"  # noqa: SIM112 - nnU-Net spells it so
    split = json.loads((arguments.data / "split.json").read_text())
    prepare(arguments.data, arguments.labels, out, split)
    trainer, iterations = train(arguments.minutes, arguments.seed)
    from importlib.metadata import version

    result = {
        "name": f"nnU-Net {version('nnunetv2')}",
        "iterations": iterations,
        "patches_per_second": iterations * trainer.batch_size / (60 * arguments.minutes),
        "dice": score(trainer, arguments.data, out, split["val"]),
    }
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
