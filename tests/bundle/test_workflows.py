"""What a run knows of its own config, however it was started."""

import json

import pytest
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow

from sparse3dunet.bundle import configs
from sparse3dunet.bundle.check_settings import check_command_line
from sparse3dunet.errors import DataError, config_error

CONFIG = """
imports:
- "$import sparse3dunet.bundle.configs as configs"
- "$import sparse3dunet.bundle.check_settings as check_settings"
rate: 1
place: here
output_dir: OUT
outside: [place, output_dir, outside, imports, initialize, run]
initialize: ["$check_settings.check_command_line()"]
run:
- "$configs.record(@output_dir)"
- "$configs.recipe(@outside)"
- "$configs.current()"
"""


class Workflow(ConfigWorkflow):
    """One of somebody's own, with a step of its own between."""

    def run(self):
        return super().run()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(CONFIG.replace("OUT", str(tmp_path / "out")))
    return path


@pytest.mark.parametrize("kind", [ConfigWorkflow, Workflow])
def test_a_run_from_python_knows_its_config(config, tmp_path, kind):
    workflow = kind(str(config), logging_file=False, rate=2, unknown_to_the_config="$None")
    workflow.initialize()  # no command line to look at
    _, recipe, current = workflow.run()
    assert recipe == {"rate": 2, "unknown_to_the_config": None}
    assert current["rate"] == 2
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text()) == json.loads(json.dumps(current))


def test_of_nested_runs_the_inner_one_counts(config, tmp_path):
    outer = tmp_path / "outer.yaml"
    outer.write_text(
        "imports: ['$import sparse3dunet.bundle.configs as configs']\nrate: 3\nrun: [$@inner(), $configs.recipe('')]\n"
    )
    inner = ConfigWorkflow(str(config), logging_file=False)
    inner.initialize()
    workflow = ConfigWorkflow(str(outer), logging_file=False, inner=inner.run)
    workflow.initialize()
    (_, recipe, current), own = workflow.run()
    assert recipe == {"rate": 1}
    assert (current["rate"], own["rate"]) == (1, 3)


def test_without_a_run_there_is_none(config, tmp_path):
    workflow = ConfigWorkflow(str(config), logging_file=False)
    assert workflow is not None
    assert configs.running_workflow() is None, "it is there, but does not run"
    assert configs.recipe([]) == {}
    configs.record(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="from the command line"):
        configs.current()
    check_command_line()


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        ({"a": "$1 / @b", "b": 0}, "a", "a ($1 / @b): ZeroDivisionError: division by zero"),
        ({"c": {"a": "$@b['x']"}, "b": {}}, "c#a", "c#a ($@b['x']): KeyError: 'x'"),
        ({"a": {"_target_": "json.loads", "s": "@b"}, "b": "{"}, "a", "a (json.loads): JSONDecodeError: Expecting"),
        ({"a": "$@b", "b": "$@c", "c": "$nothing"}, "a", "c ($nothing): NameError"),
        ({"a": "$@b"}, "a", "a ($@b): ValueError"),
    ],
)
def test_what_goes_wrong_is_told_with_the_setting_as_it_is_written(content, asked, words):
    with pytest.raises(Exception) as error:  # noqa: PT011
        ConfigParser(content).get_parsed_content(asked)
    assert config_error(error.value).startswith(words)
