"""Runs of the bundle from our own command line, which checks settings first and accepts only plain values."""

from __future__ import annotations

import logging
import runpy
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse3dunet import errors
from sparse3dunet.bundle import check_settings as checking
from sparse3dunet.bundle.command_line import parse_settings
from sparse3dunet.bundle.contents import bundle_folder
from sparse3dunet.errors import DataError

RUNS = {
    "training": ["train"],
    "evaluating": ["train", "evaluate"],
    "inference": ["inference"],
    "cross_validating": ["train", "crossval"],
    "densify": ["train", "densify"],
    "planning": ["train", "plan"],
}
"""The bundle's runs with the configs of each, of which later ones override earlier ones."""
OF_ANY_CONFIG = r'parsing config_file .*: any `"_target_"` value in it is resolved'
"""Start of MONAI's warning that a config is a program, which tells nothing of the package's own."""


def run_bundle(run: str, overlays: Sequence[str], arguments: Sequence[str]) -> None:
    """Check the settings and run the bundle by ``python -m monai.bundle run``.

    Args:
        run: one of :data:`RUNS`.
        overlays: further configs, by file or by the name of one of the bundle's.
        arguments: settings as on MONAI's command line: ``--max_epochs 20``, ``--train#deform#prob=0.5``, ``--resume``.

    Raises:
        DataError: when a config or a setting does not exist, or a value would run code.
    """
    if run not in RUNS:
        raise DataError(f"there is no run {run!r}; expected one of {', '.join(RUNS)}.")
    settings = parse_settings(arguments)
    tracking = settings.pop("tracking", None)
    if tracking not in (None, "mlflow"):
        raise DataError(f"--tracking {tracking}: expected mlflow; pass a file of settings as --overlay.")
    files = check_run(run, overlays, settings)
    settings |= dict.fromkeys(checking.emptied(files, settings), "$None")  # None itself would be ignored
    settings |= {} if tracking is None else {"tracking": tracking}
    # The values that were checked, not the text, which the other command line might parse differently.
    options = [f"--{name}={value!r}" for name, value in settings.items()]
    if "config_file" not in settings and all(_is_own(file) for file in files):
        warnings.filterwarnings("ignore", OF_ANY_CONFIG, UserWarning)
    sys.argv = ["monai.bundle", "run", run, "--config_file", repr([str(file) for file in files]), *options]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def preset(device: object) -> list[str]:
    """Return the overlay with the settings for a training of minutes on a device."""
    return ["gpu" if str(device).startswith("cuda") else "cpu"]


def run_quietly(run: str, settings: Mapping[str, Any], overlays: Sequence[str] = ()) -> None:
    """Run the bundle in this process, without MONAI's initial list of arguments and line of logging.

    Args:
        run: one of :data:`RUNS`.
        settings: plain values by name.
        overlays: further configs, as for :func:`run_bundle`.

    Raises:
        DataError: as :func:`run_bundle`.
    """
    from monai.bundle import ConfigWorkflow

    files = check_run(run, overlays, settings)
    logging.getLogger(ConfigWorkflow.__module__).setLevel(logging.WARNING)  # else it logs the name of the logging file
    logging_file = str(bundle_folder() / "configs" / "logging.conf")
    workflow = ConfigWorkflow([str(file) for file in files], run_id=run, logging_file=logging_file, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def check_run(run: str, overlays: Sequence[str], settings: Mapping[str, Any]) -> list[Path]:
    """Check settings against the configs of a run; return the configs.

    Raises:
        DataError: as :func:`run_bundle`.
    """
    files = [config_path(name) for name in [*RUNS[run], *overlays]]
    checking.check_plain(files, settings)
    checking.check_settings(files, settings)
    checking.check_length(files, settings, run, none="None")
    errors.show_readable_errors()
    return files


def config_path(name: str) -> Path:
    """Return the file of a config, given by its path or by the name of one of the bundle's.

    Raises:
        DataError: when there is neither.
    """
    folder = bundle_folder() / "configs"
    own = folder / f"{name}.yaml"
    if own.is_file():
        return own
    if not Path(name).is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise DataError(f"{Path(name).absolute()}: there is no such config; the bundle's own are {known}.")
    return Path(name)


def _is_own(file: Path) -> bool:
    """Return whether a config is one of the package's."""
    return file.resolve().parent == (bundle_folder() / "configs").resolve()
