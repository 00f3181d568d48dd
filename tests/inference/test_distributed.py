"""Several processes learn, and score, as one with all of the data does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sparse3dunet.data.sampling import SeededSampler
from sparse3dunet.data.splits import share_cases
from sparse3dunet.losses import MaskedCrossEntropyLoss, MaskedDiceCELoss
from sparse3dunet.losses.target import pack_target
from tests.conftest import ROOT, TINY, bundle_environment, make_dataset, run_training

CONFIGS = ROOT / "bundle/configs"
LOSSES = {
    "ce": lambda **kw: MaskedCrossEntropyLoss([1.0, 2.0, 0.5], **kw),
    "dice over volumes": lambda **kw: MaskedDiceCELoss(**kw),
    "dice over the batch": lambda **kw: MaskedDiceCELoss(batch=True, class_weight=[1.0, 2.0, 0.5], **kw),
    "rare classes": lambda **kw: MaskedDiceCELoss(batch=True, ce_class_weight=[1.0, 1.0, 40.0], **kw),
}


def make_batch(case):
    """Four patches of which the first two, the first process's, have more annotated voxels, or all or none of them.

    With partial labels, classes were not looked for in some patches, or only in the first process's.
    """
    random = torch.Generator().manual_seed(0)
    image = torch.randn(4, 1, 6, 5, 4, generator=random)
    label = torch.randint(0, 3, (4, 1, 6, 5, 4), generator=random)
    weight = (torch.rand(4, 1, 6, 5, 4, generator=random) < 0.3).float()
    weight[2:] *= {"few": (torch.rand(2, 1, 6, 5, 4, generator=random) < 0.1).float(), "none": 0.0}.get(case, 1.0)
    looked_for = torch.ones(4, 3, dtype=torch.bool)
    if case == "partial":
        looked_for[:2, 2] = looked_for[0, 1] = False
        label = torch.where(torch.stack([mask[part] for mask, part in zip(looked_for, label)]), label, 0)
    return image, pack_target(label, weight, looked_for)


def make_network():
    torch.manual_seed(1)
    return torch.nn.Conv3d(1, 3, 3, padding=1)


def losses_and_gradients(network, indices, **options):
    found = {}
    for case in ("few", "none", "partial"):
        image, target = make_batch(case)
        for name, make in LOSSES.items():
            network.zero_grad()
            loss = make(**options)(network(image[indices]), target[indices])
            loss.backward()
            gradients = [p.grad.clone() for p in network.parameters()]
            found[f"{name}, {case}"] = [loss.detach(), *gradients]
    return found


@pytest.mark.slow
def test_loss_and_gradient_are_those_of_the_whole_batch(tmp_path):
    """With unequal numbers of annotated voxels, and with none in one of the processes."""
    command = [sys.executable, str(Path(__file__).resolve()), str(tmp_path)]
    environment = bundle_environment()
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment['PYTHONPATH']}"
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    expected = losses_and_gradients(make_network(), slice(0, 4))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"found{rank}", weights_only=True)
        assert set(found) == {*expected, "plain"}
        for name in expected:
            for a, b in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    mean = [torch.load(tmp_path / f"found{rank}", weights_only=True)["plain"] for rank in (0, 1)]
    assert not torch.allclose((mean[0] + mean[1]) / 2, expected["ce, few"][0], rtol=1e-2), (
        "the mean of means is another"
    )


def _run_as_a_rank(folder, rank):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    network = torch.nn.parallel.DistributedDataParallel(make_network())
    mine = slice(2 * rank, 2 * rank + 2)
    found = losses_and_gradients(network, mine, distributed=True)
    image, target = make_batch("few")
    found["plain"] = LOSSES["ce"]()(network(image[mine]), target[mine]).detach()
    torch.save(found, f"{folder}/found{rank}")
    torch.distributed.destroy_process_group()


def run_ranks(*command, timeout=280):
    """Run ``-m monai.bundle ...`` in two processes of torchrun; what they print."""
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, *map(str, command)],
        cwd=ROOT,
        env=bundle_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_ranks_share_each_batch():
    options = {"weights": [1.0, 2.0, 3.0], "num_samples": 24, "seed": 3}
    whole = list(SeededSampler(**options, batch_size=6))
    ranks = [SeededSampler(**options, batch_size=2, rank=rank, ranks=3) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [8, 8, 8]
    parts = [list(rank) for rank in ranks]
    for i in range(4):
        assert [pair for part in parts for pair in part[2 * i : 2 * i + 2]] == whole[6 * i : 6 * i + 6]
    second = list(ranks[1])
    ranks[1].set_epoch(1, first_batch=3)
    assert list(ranks[1]) == second[6:]
    assert list(ranks[1]) not in (second, second[6:]), "the epoch after that is whole, and another one"
    with pytest.raises(ValueError, match="not whole batches of 5 in 3 processes"):
        SeededSampler(**options, batch_size=5, ranks=3)


def test_cases_are_shared_or_all_validated_by_each():
    cases = [{"image": str(i)} for i in range(5)]
    shares = [share_cases(cases, rank, 3) for rank in range(3)]
    assert sorted(case["image"] for share in shares for case in share) == list("01234")
    assert all(shares)
    assert [share_cases(cases, rank, 6) for rank in range(6)] == [cases] * 6


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(4, id="a volume each", marks=pytest.mark.slow),
        pytest.param(3, id="fewer volumes than processes", marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one(tmp_path, count):
    """Batches of 1 each give the loss curve of batches of 2, and the same scores on shared-out volumes."""
    data = make_dataset(tmp_path / "dataset", count)
    names = [f"case_{i}" for i in range(count)]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": names[:2], "val": names[2:]}))
    options = ("--split_file", split, "--train#inferer#enabled", False, "--validate#inferer#bfloat16", False)
    one, two = tmp_path / "one", tmp_path / "two"
    result = run_training(data, one, *options, "--max_epochs", 3)
    assert result.returncode == 0, result.stderr
    places = ("--dataset_dir", data, "--output_dir", two / "eval", "--ckpt_dir", two / "models")
    overlay = f"['{CONFIGS}/train.yaml','{CONFIGS}/multi_gpu_train.yaml']"
    run = ("-m", "monai.bundle", "run")
    command = (*run, "training", "--config_file", overlay, *places, *TINY, *options, "--max_epochs", 3)
    text = run_ranks(*command, "--batch_size", 1)
    assert text.count("epoch 3/3") == 1, "one process prints"
    rows = [list(csv.DictReader((out / "eval/training.csv").open())) for out in (one, two)]
    assert len(rows[0]) == len(rows[1]) == 3
    for a, b in zip(*rows, strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-3)
        assert float(a["dice_all"]) == pytest.approx(float(b["dice_all"]), abs=0.02)
    if count == 3:
        return
    overlay = f"['{CONFIGS}/train.yaml','{CONFIGS}/evaluate.yaml','{CONFIGS}/multi_gpu_evaluate.yaml']"
    scores = []
    for out, ranks in ((tmp_path / "a", 1), (tmp_path / "b", 2)):
        places = ("--dataset_dir", data, "--output_dir", out, "--ckpt_dir", one / "models")
        command = (*run, "evaluating", "--config_file", overlay, *places, "--split_file", split)
        if ranks == 2:
            run_ranks(*command)
        else:
            subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, env=bundle_environment(), check=True)
        scores.append(sorted((out / "scores.csv").read_text().splitlines()))
        assert {path.name for path in (out / "pictures").iterdir()} == {"case_2.png", "case_3.png"}
    assert scores[0] == scores[1]


if __name__ == "__main__":
    _run_as_a_rank(sys.argv[1], int(sys.argv[2]))
