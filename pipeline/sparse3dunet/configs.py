"""Settings of the bundle's configs: which there are, and which a command line may set."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import yaml
from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.utils import ensure_tuple
from torch.utils.tensorboard import SummaryWriter

from sparse3dunet.errors import DataError

OF_COMPONENTS = {"_target_", "_disabled_", "_desc_", "_requires_", "_mode_", "_debug_"}
"""What MONAI lets any component have."""
OF_TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0", "output_dir"}
"""What ``--tracking`` adds to any config."""
OF_WORKFLOW = {"imports", "initialize", "run", "finalize"}
"""That a config may have, or not."""
OF_RUN = {"args_file", "workflow_name", *inspect.signature(ConfigWorkflow).parameters}
"""Of ``monai.bundle run`` itself."""


def check_command_line() -> None:
    """For ``initialize``: refuse settings of ``monai.bundle run`` that no config knows, which MONAI takes in silence.

    Does nothing where the config is run by other means.

    Raises:
        DataError: names the setting, and those that are most like it.
    """
    caller = _monais("create_workflow")
    arguments, files = caller.get("_args"), caller.get("config_file")
    if isinstance(arguments, Mapping) and isinstance(files, (str, list, tuple)):
        check_settings(ensure_tuple(files), {k: v for k, v in arguments.items() if k not in OF_RUN})


def record(output_dir: str | Path, summary_writer: SummaryWriter | None = None) -> None:
    """Within a run: write the config as it is run to ``config.yaml``, with all that the command line set.

    Does nothing where the config is run by other means than MONAI's ``ConfigWorkflow``.

    Args:
        output_dir: where to write; made where it is missing.
        summary_writer: TensorBoard's, which gets it as text, too.
    """
    workflow = _monais("_run_expr").get("self")
    if not isinstance(workflow, ConfigWorkflow):
        return
    content: Any = workflow.parser.config
    config = {key: value for key, value in content.items() if key != workflow.parser.meta_key}
    # By way of JSON, since callers from Python may have set any object.
    text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, width=120)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    (Path(output_dir) / "config.yaml").write_text(text, encoding="utf-8")
    if summary_writer is not None:
        summary_writer.add_text("configuration", "\n".join(f"    {line}" for line in text.splitlines()))


def _monais(function: str) -> dict[str, Any]:
    """The local variables of a function of ``monai.bundle`` that is running now; none where it is not.

    MONAI's expressions see neither their parser nor the command line, hence this look at their callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_globals.get("__name__", "").startswith("monai.bundle"):
            return frame.f_locals
        frame = frame.f_back
    return {}


def check_settings(files: Sequence[str | Path], settings: Mapping[str, Any]) -> None:
    """Raise DataError where a setting is none of the config files', nor used in them, nor an argument of a component.

    Nor may text stand where the config has a number.

    Args:
        files: of which later ones are laid over earlier ones; their plain values are looked at as well.
        settings: by name, as on the command line without ``--``: ``max_epochs`` or ``train#deform#prob``.
    """
    config = ConfigParser.load_config_files([str(file) for file in files])
    used = _used(config)
    for file in files[1:]:
        before = ConfigParser.load_config_files([str(f) for f in files[: list(files).index(file)]])
        for name, value in ConfigParser.load_config_file(str(file)).items():
            if not isinstance(value, (list, dict)):
                _check(name.lstrip("+"), before, used, str(file))
    for name, value in settings.items():
        default = _check(name, config, used, "--")
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and isinstance(value, str) and value.strip()[:1] not in ("$", "@", "%"):
            raise DataError(f"--{name} {value}: expected a number, as {default}.")


def _check(name: str, config: Mapping[str, Any], used: set[str], where: str) -> Any:
    """The config's value of a setting, None where it has none.

    Raises:
        DataError: when there is no such setting.
    """
    parts = ReferenceResolver.normalize_id(name).split("::")
    if parts[0].startswith("_meta_"):
        return None
    node: Any = config
    for depth, part in enumerate(parts):
        known, open_ended = _keys(node, top=depth == 0)
        if part not in known and not open_ended and "::".join(parts) not in used:
            _refuse(parts[:depth], part, known, where)
        if part not in (node if isinstance(node, Mapping) else known):
            return None  # an argument that the config leaves at its default, or one that it takes from elsewhere
        node = node[part] if isinstance(node, Mapping) else node[int(part)]
    return node


def _keys(node: Any, top: bool) -> tuple[set[str], bool]:
    """What can be set in a part of a config, and whether anything else can."""
    if isinstance(node, Mapping) and "_target_" in node:
        names, open_ended = _arguments(node)
        return {*map(str, node), *names, *OF_COMPONENTS}, open_ended
    if isinstance(node, Mapping):
        return {*map(str, node), *(OF_TRACKING | OF_WORKFLOW if top else ())}, False
    if isinstance(node, list):
        return {str(i) for i in range(len(node))}, False
    return set(), isinstance(node, str)  # what a reference or an expression stands for, is not known here


def _arguments(component: Mapping[str, Any]) -> tuple[set[str], bool]:
    """The names of a component's arguments, and whether it takes any."""
    target = component["_target_"]
    found = (
        locate(str(ConfigComponent({"_target_": target}).resolve_module_name())) if isinstance(target, str) else None
    )
    try:
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return set(), True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _used(config: Any) -> set[str]:
    """Every id that some value of the config refers to."""
    if isinstance(config, Mapping):
        return set().union(*map(_used, config.values()))
    if isinstance(config, list):
        return set().union(*map(_used, config))
    found = re.findall(r"[@%]([\w:#]+)", config) if isinstance(config, str) else []
    return {ReferenceResolver.normalize_id(name) for name in found}


def _refuse(parents: Sequence[str], name: str, known: set[str], where: str) -> None:
    path = "#".join([*parents, ""])
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    option = "--" if where == "--" else ""
    cure = "Did you mean " + ", or ".join(f"{option}{path}{n}" for n in near) + "?" if near else ""
    if not near:
        cure = f"There are {', '.join(sorted(known))}." if 0 < len(known) < 15 else "See the comments in train.yaml."
    place = "" if where == "--" else f"{where}: "
    raise DataError(f"{place}{option}{path}{name}: there is no such setting. {cure}")


def check_literal(name: str, value: Any) -> None:
    """Raise DataError unless a setting is a plain value: no expression, reference or component, which can run code."""
    parts = re.split("#|::", name)
    if any(part.startswith("_") and part != "_disabled_" for part in parts) or parts[0] in ("imports", "initialize"):
        raise DataError(f"--{name} would choose which code runs; write it into a config file of your own instead.")
    if isinstance(value, str) and value.strip()[:1] in ("$", "@", "%"):
        raise DataError(f"--{name} {value}: expected a plain value; expressions and references go into a config file.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_literal(f"{name}#{key}", inner)
    if isinstance(value, (list, tuple)):
        for inner in value:
            check_literal(name, inner)
