"""Config of the current run of the bundle: its content, a copy on disk, and its learning settings."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import yaml
from monai.bundle import ConfigWorkflow
from torch.utils.tensorboard import SummaryWriter

from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import write_text

OF_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "output_dir"}
"""Entries that ``--tracking`` adds to any config."""


def record(output_dir: str | Path, summary_writer: SummaryWriter | None = None) -> None:
    """Write the config of the current run to ``config.yaml``, including the settings of the command line.

    Does nothing if the config is not run by MONAI's ``ConfigWorkflow``, or in another process than the first.

    Args:
        output_dir: folder to write to; made if it is missing.
        summary_writer: TensorBoard writer that also gets the config as text.
    """
    config = _running()
    if config is None or idist.get_rank() > 0:
        return
    # By way of JSON, since callers from Python may have set any object.
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, width=120)
    write_text(Path(output_dir) / "config.yaml", text)
    if summary_writer is not None:
        summary_writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))


def current() -> dict[str, Any]:
    """Return the config of the current run, unresolved, including the settings of the command line.

    Raises:
        DataError: when the config is not run by MONAI's ``ConfigWorkflow``.
    """
    config = _running()
    if config is None:
        raise DataError("this runs only from the command line, or by MONAI's ConfigWorkflow.")
    return copy.deepcopy(config)


def recipe(of_the_run: Sequence[str]) -> dict[str, Any]:
    """Return the learning settings of the current run's config, unresolved, by id: ``{"loss#batch": True, ...}``.

    Empty if the config is not run by MONAI's ``ConfigWorkflow``.

    Args:
        of_the_run: ids to leave out, with their contents: settings of place, duration and machine.
    """
    config = _running()
    if config is None:
        return {}
    settings: dict[str, Any] = {}

    def collect(node: Any, parts: list[str]) -> None:
        name = "#".join(parts)
        if name in {*of_the_run, *OF_TRACKING}:
            return
        items = list(node.items()) if isinstance(node, Mapping) else list(enumerate(node))
        for key, value in items:
            path = [*parts, str(key)]
            if isinstance(value, (Mapping, list)) and value:
                collect(value, path)
            elif "#".join(path) not in {*of_the_run, *OF_TRACKING}:
                settings["#".join(path)] = value

    collect(config, [])
    return json.loads(json.dumps(settings, default=str))


def _running() -> dict[str, Any] | None:
    """Return the config of the running ``ConfigWorkflow`` of MONAI, without its metadata; None without one."""
    workflow = running_workflow()
    if workflow is None:
        return None
    content: Any = _plain_none(workflow.parser.config)
    return {key: value for key, value in content.items() if key != workflow.parser.meta_key}


def running_workflow() -> ConfigWorkflow | None:
    """Return the innermost ``ConfigWorkflow`` with a running method; None if there is none.

    MONAI's expressions have no access to their workflow, so it is looked up on the call stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, ConfigWorkflow):
            return owner
        frame = frame.f_back
    return None


def _plain_none(content: Any) -> Any:
    """Replace "$None" by None in a config's content: the command line passes None in this form."""
    if isinstance(content, Mapping):
        return {key: _plain_none(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain_none(value) for value in content]
    return None if isinstance(content, str) and content == "$None" else content
