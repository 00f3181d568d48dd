"""The configs say what there is: how it is done is Python's, where it can be called by itself."""

import ast
import re

import pytest
from monai.bundle import ConfigParser

from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "bundle/configs").glob("*.yaml"))
WITHOUT_THE_PACKAGE = {("standalone.yaml", "resample#1#func"), ("standalone.yaml", "on_grid")}
"""Where there is no module to call: MONAI has no transform that resamples over exactly the field of view."""


def entries(content, name=""):
    """Ids and plain values, at any depth."""
    items = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    if not isinstance(content, (dict, list)):
        yield name, content
    for key, value in items:
        yield from entries(value, f"{name}#{key}" if name else str(key))


def expressions(path):
    """By id, the expressions of a config, parsed, but for what it imports."""
    found = {}
    for name, value in entries(ConfigParser.load_config_file(str(path))):
        if isinstance(value, str) and value.startswith("$") and not value.startswith("$import "):
            text = re.sub(r"[@%][\w#:]+", "value", value[1:]).strip()
            found[name] = list(ast.walk(ast.parse(text, mode="eval")))
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_expression_is_one_call_at_most(path):
    calls = {name: sum(isinstance(node, ast.Call) for node in nodes) for name, nodes in expressions(path).items()}
    assert {(path.name, name) for name, count in calls.items() if count > 1} <= WITHOUT_THE_PACKAGE


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_condition_chooses_between_constants_alone(path):
    for name, nodes in expressions(path).items():
        for node in nodes:
            if isinstance(node, ast.IfExp):
                assert {type(node.body), type(node.orelse)} == {ast.Constant}, name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_nothing_is_overridden_by_its_place_in_a_list(path):
    keys = ConfigParser.load_config_file(str(path))
    assert not [key for key in keys if re.search(r"(#|::)\d+(#|::|$)", key)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_is_imported_is_used(path):
    content = ConfigParser.load_config_file(str(path))
    imports = [line.split()[-1] for line in content.get("imports", []) + content.get("+imports", [])]
    users = (
        [other for other in CONFIGS if other.stem not in ("inference", "standalone")]
        if path.stem == "train"
        else [path]
    )
    text = "".join(user.read_text() for user in users)
    assert [name for name in imports if not re.search(rf"(?<![\w.@#]){name}\.\w", text)] == []


def test_handlers_are_references_to_parts_with_a_name():
    """Each entry a component, with which MONAI's tools can do something."""
    for name in ("train.yaml", "evaluate.yaml"):
        parser = ConfigParser()
        parser.read_config([str(ROOT / "bundle/configs/train.yaml"), str(ROOT / "bundle/configs" / name)])
        for handler in parser["train#handlers"] + parser["validate#handlers"]:
            assert set(handler) == {"_target_", "handler"}
            assert handler["handler"].removeprefix("@") in parser
