"""The config of the bundle's run that is running: as it is, written down, and what it says of how is learned."""

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

OF_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "output_dir"}
"""What ``--tracking`` adds to any config."""


def record(output_dir: str | Path, summary_writer: SummaryWriter | None = None) -> None:
    """Within a run: write the config as it is run to ``config.yaml``, with all that the command line set.

    Does nothing where the config is run by other means than MONAI's ``ConfigWorkflow``, or in another process than the
    first.

    Args:
        output_dir: where to write; made where it is missing.
        summary_writer: TensorBoard's, which gets it as text, too.
    """
    config = _running()
    if config is None or idist.get_rank() > 0:
        return
    # By way of JSON, since callers from Python may have set any object.
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, width=120)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    (Path(output_dir) / "config.yaml").write_text(text, encoding="utf-8")
    if summary_writer is not None:
        summary_writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))


def current() -> dict[str, Any]:
    """Within a run: the config, as it is written and as the command line set it.

    Raises:
        DataError: where the config is run by other means than MONAI's ``ConfigWorkflow``.
    """
    config = _running()
    if config is None:
        raise DataError("this runs from the command line, or by MONAI's ConfigWorkflow, alone.")
    return copy.deepcopy(config)


def recipe(of_the_run: Sequence[str]) -> dict[str, Any]:
    """Within a run: what the config says about how is learned, by id, as it is written: ``{"loss#batch": True, ...}``.

    Empty where the config is run by other means than MONAI's ``ConfigWorkflow``.

    Args:
        of_the_run: ids that say rather where, how long, or on what machine; with all that is in them.
    """
    config = _running()
    if config is None:
        return {}
    found: dict[str, Any] = {}

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
                found["#".join(path)] = value

    collect(config, [])
    return json.loads(json.dumps(found, default=str))


def _running() -> dict[str, Any] | None:
    """The config of MONAI's ``ConfigWorkflow`` that is running now, without its metadata; None where none is."""
    workflow = running_workflow()
    if workflow is None:
        return None
    content: Any = _plain_none(workflow.parser.config)
    return {key: value for key, value in content.items() if key != workflow.parser.meta_key}


def running_workflow() -> ConfigWorkflow | None:
    """The innermost ``ConfigWorkflow`` of which a method is running now; None where none is.

    MONAI's expressions do not see by which workflow they are run, hence this look at the objects whose methods are
    being called.
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
    """A config's content with None for "$None", as which our command line hands it over: they are the same."""
    if isinstance(content, Mapping):
        return {key: _plain_none(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_plain_none(value) for value in content]
    return None if isinstance(content, str) and content == "$None" else content
