"""A config that is damaged ends in one line, with the file and the line."""

import pytest

from sparse3dunet.bundle.config_files import read_config
from sparse3dunet.bundle.running import run_bundle
from sparse3dunet.errors import DataError
from tests.conftest import ROOT

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
BOMB += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\n\tmax_epochs: 2\n", r"config\.yaml, line 2: .*cannot start any token"),
        ("seed: 0\nspacing: [1, 1\nmax_epochs: 2\n", r"config\.yaml, line 3: "),
        ("seed: 0\nname: 'open\n", r"config\.yaml, line 3: "),
        ("seed: 0\nseed 1\n", r"config\.yaml, line 3: "),
        ("", r"config\.yaml, line 1: .*found nothing"),
        ("- 1\n- 2\n", r"config\.yaml, line 1: .*found a list"),
        ("just text", r"config\.yaml, line 1: .*found a str"),
        ("1: 2\n", r"config\.yaml, line 1: .*expected lines such as"),
        ("a: *b\n", r"config\.yaml, line 1: .*undefined alias"),
        ("a: &a [*a]\n", r"config\.yaml: .*contains itself"),
        ("a: " + "[" * 5000 + "]" * 5000, r"config\.yaml: .*nested too deeply"),
        (BOMB, r"config\.yaml: .*it stands for \d{10,} entries"),
        ("a: \x01\n", r"config\.yaml: not a config"),
        ("a: !!python/object/apply:os.system [ls]\n", r"config\.yaml, line 1: "),
    ],
)
def test_damaged_configs_are_one_line(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=words) as error:
        read_config(path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=words):
        run_bundle("training", [str(path)], [])


def test_json_and_our_own(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"seed": 0,\n "max_epochs" 2}')
    with pytest.raises(DataError, match=r"config\.json, line 2: "):
        read_config(path)
    for own in (ROOT / "bundle/configs").glob("*.yaml"):
        assert read_config(own)
