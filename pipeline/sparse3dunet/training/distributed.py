"""Several processes (DDP) under torchrun: start, sharing of cases, and output of the first process for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
import torch
from torch import nn

from sparse3dunet.data import check_report
from sparse3dunet.data.datalist import Case
from sparse3dunet.data.reports import DataReport
from sparse3dunet.data.splits import share_cases
from sparse3dunet.datasets.mni152 import ensure_default
from sparse3dunet.inference.processes import LONGEST_WAIT
from sparse3dunet.io import folders
from sparse3dunet.planning.plan import Plan, write_plan


def start(dataset_dir: str | None) -> None:
    """Join the group of processes; on each machine, one of them prepares the built-in data if absent.

    Args:
        dataset_dir: the data set's folder or datalist; None for none.
    """
    idist.initialize("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    if dataset_dir and idist.get_local_rank() == 0:
        ensure_default(dataset_dir)
    idist.barrier()


def wrap(network: nn.Module) -> nn.Module:
    """Have all processes share the network's gradients and, on GPUs, its statistics of batch normalisation."""
    return idist.auto_model(network, sync_bn=torch.cuda.is_available())


def share(cases: Sequence[Case]) -> list[Case]:
    """Return this process's share of the cases, see :func:`~sparse3dunet.data.splits.share_cases`."""
    return share_cases(cases, idist.get_rank(), idist.get_world_size())


def hold_folders(*places: str | Path) -> None:
    """Hold folders for this run, see :func:`~sparse3dunet.io.folders.hold_folder`; by the first process, for all."""
    if idist.get_rank() == 0:
        for folder in places:
            folders.hold_folder(folder)


def show_data(report: DataReport, class_weights: Sequence[float] | None = None, loss: nn.Module | None = None) -> None:
    """Print a data set's classes and warnings, in the first process only.

    Args:
        report: report on the data set.
        class_weights: weight of a voxel of each class, shown with the classes.
        loss: the loss, whose own weights in the cross-entropy are shown instead, if it has any.
    """
    if idist.get_rank() == 0:
        own = getattr(loss, "ce_class_weight", None)
        check_report.show(report, cases=False, class_weights=class_weights if own is None else own.tolist())


def show_plan(plan: Plan, path: str | Path | None, keep: bool = False) -> None:
    """Print a plan, and write it to a file, if one is given, in the first process only.

    Args:
        plan: the plan.
        path: the file.
        keep: whether a file that is there already stays, since a training that is resumed may be refused.
    """
    if idist.get_rank() == 0:
        for name, value, reason in plan.lines():
            print(f"{name}: {value} ({reason})", flush=True)
        if path is not None and not (keep and Path(path).exists()):
            write_plan(plan, Path(path).expanduser())


def show_results(output_dir: str | Path) -> None:
    """Print where the scores and pictures of an evaluation are, in the first process only."""
    if idist.get_rank() == 0:
        print("Scores:", f"{output_dir}/scores.csv", " pictures:", f"{output_dir}/pictures")
