"""Checks of command-line settings against the bundle's configs: their names, and the types of their values."""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any

import fire
import monai.bundle
from monai.bundle import (
    ComponentLocator,
    ConfigComponent,
    ConfigParser,
    ConfigWorkflow,
    ReferenceResolver,
    update_kwargs,
)
from monai.bundle.utils import merge_kv
from monai.utils import ensure_tuple

from sparse3dunet.bundle.config_files import read_config
from sparse3dunet.bundle.configs import OF_TRACKING
from sparse3dunet.errors import DataError, UnknownSettingError

OF_COMPONENTS = {"_target_", "_disabled_", "_desc_", "_requires_", "_mode_", "_debug_"}
"""Entries that MONAI allows in any component."""
OF_WORKFLOW = {"imports", "initialize", "run", "finalize"}
"""Optional entries of a config."""
PLAIN = ("sparse3dunet.", "torch.optim.")
"""Prefixes of components whose arguments select no code, unless their values are components."""
TRAININGS = ("training", "cross_validating", "run", None)
"""Runs for which epochs or minutes can be set."""
OF_RUN = {"args_file", "workflow_name", *inspect.signature(ConfigWorkflow).parameters}
"""Arguments of ``monai.bundle run`` itself."""


def check_command_line() -> None:
    """Refuse settings of ``monai.bundle run`` that MONAI silently ignores; for a config's ``initialize``.

    Does nothing if the config is not run by ``python -m monai.bundle run``.

    Raises:
        DataError: for an unknown setting, with the nearest known ones; for null, or one of None (:func:`emptied`); for
            an empty list of what to run; as :func:`check_length`.
    """
    typed = _command_line()
    arguments = update_kwargs(typed.pop("args_file", None), **typed)  # as MONAI: without None
    if not typed or not arguments.get("config_file"):
        return
    files, given = ensure_tuple(arguments["config_file"]), {k: v for k, v in arguments.items() if k not in OF_RUN}
    for name, value in given.items():
        if value == "null":
            raise DataError(
                f"--{name} null: on this command line null is a text; pass --{name} '$None', or use: sparse3dunet run."
            )
    check_settings(files, given)
    nothing = [
        name for name, value in {**typed, **given}.items() if value in (None, "$None", []) and name not in OF_RUN
    ]
    if nothing:
        _refuse_runs(_of_files(files), nothing)
    for name, value in emptied(files, typed, given).items():
        raise DataError(
            f"--{name} None: MONAI ignores settings of None, and {name} would stay {value}; pass "
            f"--{name} '$None', or use: sparse3dunet run."
        )
    check_length(files, given, arguments.get("run_id"), none="'$None'")


def _command_line() -> dict[str, Any]:
    """Return this process's arguments of ``python -m monai.bundle run`` by name; none for any other command.

    They are parsed as by MONAI, with the same parser and the function's own arguments.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or spec.name != "monai.bundle.__main__" or sys.argv[1:2] != ["run"]:
        return {}
    words = sys.argv[1:]
    if "--" in words:  # what follows the last one is for fire
        words = words[: len(words) - 1 - words[::-1].index("--")]

    parsed: dict[str, Any] = {}

    @functools.wraps(monai.bundle.run)
    def run(*arguments: Any, **settings: Any) -> None:
        named = zip(inspect.signature(monai.bundle.run).parameters, arguments)
        parsed.update({name: value for name, value in named if value is not None}, **settings)

    fire.Fire({"run": run}, command=words)
    return parsed


def check_settings(files: Sequence[str | Path], settings: Mapping[str, Any]) -> None:
    """Raise DataError unless each setting is in the config files, used in them, or an argument of a component.

    A setting must also not be text if the config has a number.

    Args:
        files: config files, of which later ones override earlier ones; their settings are checked as well.
        settings: values by name, as on the command line without ``--``: ``max_epochs`` or ``train#deform#prob``.
    """
    layers = [*((f"{file}: ", entries) for file, entries in _read(files)), ("--", settings)]
    states: list[dict[str, Any]] = [{}]
    for where, entries in layers:
        states.append(_laid_over(states[-1], entries, where))
    used = _used(states[-1])
    for (where, entries), before, after in zip(layers[1:], states[1:], states[2:]):
        for name, value in entries.items():
            default = _check(name, value, before, after, used, where)
            number = isinstance(default, (int, float)) and not isinstance(default, bool)
            if number and isinstance(value, str) and value.strip()[:1] not in ("$", "@", "%"):
                raise DataError(f"{where}{name} {value}: expected a number such as {default}.")


def emptied(
    files: Sequence[str | Path], settings: Mapping[str, Any], given: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Return settings of None, which MONAI's command line ignores, with the values that they would keep.

    Those that would be None anyway are left out; arguments that are not in the configs are "at its default".

    Args:
        files: configs, of which later ones override earlier ones.
        settings: values by name, as on the command line without ``--``, that passed :func:`check_settings`.
        given: settings that override the files.
    """
    names = [name for name, value in settings.items() if value is None and name not in OF_RUN | OF_TRACKING]
    if not names:
        return {}
    config = _laid_over(_of_files(files), given or {}, "--")
    kept = {}
    for name in names:
        node, absent = config, False
        for part in _parts(name):
            absent = absent or part not in _entries(node)
            node = _child(node, part)
        if absent or node is not None:
            kept[name] = "at its default" if absent else reprlib.repr(node)
    return kept


def check_length(files: Sequence[str | Path], settings: Mapping[str, Any], run: str | None, none: str) -> None:
    """Raise DataError if epochs are set, but the minutes of an earlier config would end the training.

    Args:
        files: configs, of which later ones override earlier ones.
        settings: values by name, as on the command line without ``--``, that passed :func:`check_settings`.
        run: name of the run; None for the config's own.
        none: spelling of None on that command line.
    """
    if run == "densify" and "max_epochs" in settings:
        raise DataError("--max_epochs: densify has no epochs; set --minutes.")
    if run not in TRAININGS:
        return
    layers = [*((Path(file).name, entries) for file, entries in _read(files)), ("", settings)]
    minutes, since, asked = None, "", ""
    for where, entries in layers:
        if "minutes" in entries:
            minutes, since, asked = entries["minutes"], where, ""
        elif "max_epochs" in entries:
            asked = f"{where}: max_epochs" if where else "--max_epochs"
            asked += f" {entries['max_epochs']}"
    if asked and isinstance(minutes, (int, float)):
        raise DataError(
            f"{asked}: {since} sets the training to {minutes} minutes instead; for epochs, add --minutes {none}; for "
            "minutes, leave out max_epochs."
        )


def _of_files(files: Sequence[str | Path]) -> dict[str, Any]:
    """Merge configs, of which later ones override earlier ones."""
    config: dict[str, Any] = {}
    for file, entries in _read(files):
        config = _laid_over(config, entries, f"{file}: ")
    return config


def _read(files: Sequence[str | Path]) -> list[tuple[str, dict[str, Any]]]:
    """Read configs; return path and content of each."""
    return [(str(file), read_config(file)) for file in files]


def _laid_over(config: Mapping[str, Any], entries: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy of a config overridden by entries, as MONAI does.

    Raises:
        DataError: when the group of an entry does not exist.
    """
    parser = ConfigParser(copy.deepcopy(dict(config)))
    for name, value in copy.deepcopy(dict(entries)).items():
        node, parts = parser.config, _parts(name)
        if parts[0].startswith("_meta_"):
            continue
        for depth, part in enumerate(parts[:-1]):
            if part not in _entries(node):
                _refuse(parts[:depth], part, _known(node, depth), where)
            node = _child(node, part)
        try:
            merge_kv(parser, name, value)
        except (KeyError, IndexError, TypeError, ValueError):
            _refuse(parts[:-1], parts[-1], _known(node, len(parts) - 1), where)
    return parser.config  # type: ignore[return-value]


def _check(name: str, value: Any, before: Any, after: Any, used: set[str], where: str) -> Any:
    """Return the value that a setting had before, None if it had none.

    Args:
        name: name of the setting.
        value: value of the setting.
        before: the config without it and the settings that come with it.
        after: the config with them.
        used: ids that some value refers to.
        where: prefix of the message.

    Raises:
        DataError: when there is no such setting.
    """
    parts, whole = _parts(name), before
    if parts[0].startswith("_meta_"):
        return None
    top = after
    for depth, part in enumerate(parts):
        known, (arguments, open_ended) = _known(before, depth), _arguments(after)
        a_run = depth == 0 and isinstance(value, list) and any(str(v).startswith("$") for v in value)
        if not (part in known | arguments or open_ended or "::".join(parts) in used or a_run):
            _refuse(parts[:depth], part, known | arguments, where)
        if part not in _entries(before):
            return None  # an argument that was left at its default, or a new entry with any content
        before, after = _child(before, part), _child(after, part)
    if name.startswith("+") and isinstance(value, Mapping):
        for key, inner in value.items():
            _check(f"{name[1:]}::{key}", inner, whole, top, used, where)
    return before


def _refuse_runs(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise DataError for settings that replace a list of what to run, such as ``training``."""
    others = str({name: value for name, value in config.items() if name != "run"})  # which refers to what is run
    for name in names:
        top = _parts(name)[0]
        steps = config.get(top)
        listed = isinstance(steps, list) and bool(steps) and all(str(step).startswith("$") for step in steps)
        if listed and not re.search(rf"@{top}\b", others):
            raise DataError(f"--{name}: this is a list of what to run, not a setting; leave it out.")


def _parts(name: str) -> list[str]:
    return ReferenceResolver.normalize_id(name.removeprefix("+")).split("::")


def _entries(node: Any) -> set[str]:
    """Return the names of the entries of a part of a config."""
    if isinstance(node, Mapping):
        return set(map(str, node))
    return {str(i) for i in range(len(node))} if isinstance(node, list) else set()


def _child(node: Any, part: str) -> Any:
    if part not in _entries(node):
        return None
    return node[part] if isinstance(node, Mapping) else node[int(part)]


def _known(node: Any, depth: int) -> set[str]:
    return _entries(node) | (OF_TRACKING | OF_WORKFLOW if depth == 0 else set())


def _arguments(node: Any) -> tuple[set[str], bool]:
    """Return the arguments of a component, and whether it accepts any others."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        return set(), False
    target = node["_target_"]
    found = _located(target) if isinstance(target, str) else None
    try:
        parameters = inspect.signature(found).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return OF_COMPONENTS, True
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named | OF_COMPONENTS, any(p.kind == p.VAR_KEYWORD for p in parameters)


@functools.cache
def _located(target: str) -> Any:
    """Return the component of that name, as MONAI finds it; None if there is none."""
    return locate(str(ConfigComponent({"_target_": target}, locator=_components()).resolve_module_name()))


@functools.cache
def _components() -> ComponentLocator:
    """Return MONAI's table of its components, which it would make again for each of them."""
    return ComponentLocator()


def _used(config: Any) -> set[str]:
    """Return all ids that values of the config refer to, with the groups that contain them."""
    if isinstance(config, Mapping):
        return set().union(*map(_used, config.values()))
    if isinstance(config, list):
        return set().union(*map(_used, config))
    found = re.findall(r"[@%]([\w:#]+)", config) if isinstance(config, str) else []
    parts = [ReferenceResolver.normalize_id(name).split("::") for name in found]
    return {"::".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}


def _refuse(parents: Sequence[str], name: str, known: set[str], where: str) -> None:
    path = "#".join([*parents, ""])
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    option = "--" if where == "--" else ""
    cure = f"There are {', '.join(sorted(known))}." if 0 < len(known) < 15 else "See the comments in train.yaml."
    raise UnknownSettingError(f"{where}{path}{name}", [f"{option}{path}{n}" for n in near], cure)


def check_plain(files: Sequence[str | Path], settings: Mapping[str, Any]) -> None:
    """Raise DataError unless settings are plain values, which select no code.

    Expressions, references and components are not plain. Nor are arguments that no config gives, except of this
    package's components and optimizers: in MONAI some of those name what is called. Lists of what to run are refused.

    Args:
        files: the configs.
        settings: values by name.
    """
    config = _of_files(files)
    for name, value in settings.items():
        check_literal(name, value)
        _refuse_runs(config, [name])
        node: Any = config
        for part in _parts(name):
            target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
            if part not in _entries(node) and target and not target.startswith(PLAIN):
                raise DataError(
                    f"--{name}: for {target}, only arguments in the config can be set here. Write this one into a "
                    "config file of your own instead (--overlay FILE)."
                )
            node = _child(node, part)


def check_literal(name: str, value: Any) -> None:
    """Raise DataError unless a setting is a plain value: expressions, references and components can run code."""
    parts = re.split("#|::", name)
    if any(part.startswith("_") and part != "_disabled_" for part in parts) or parts[0] in OF_WORKFLOW:
        raise DataError(f"--{name} would select code to run; write it into a config file of your own instead.")
    if isinstance(value, str) and value.strip()[:1] in ("$", "@", "%"):
        raise DataError(f"--{name} {value}: expected a plain value; expressions and references go into a config file.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_literal(f"{name}#{key}", inner)
    if isinstance(value, (list, tuple)):
        for inner in value:
            check_literal(name, inner)
