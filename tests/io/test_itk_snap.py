"""ITK-SNAP's label descriptions: read as ITK-SNAP writes them, and written as it reads them."""

import os

import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.io.itk_snap import label_descriptions, may_be_replaced, read_label_descriptions

FROM_ITK_SNAP = """################################################
# ITK-SnAP Label Description File
# File format:
# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL
################################################
    0     0    0    0        0  0  0    "Clear Label"
    1   255    0    0        1  1  1    "left kidney"
    2     0  255    0     0.67  1  0    "Zyste, \u00fcbrig"
"""


def test_names(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(FROM_ITK_SNAP, encoding="utf-8")
    assert read_label_descriptions(path) == {1: "left kidney", 2: "Zyste, übrig"}
    assert not may_be_replaced(path)


def test_a_round_trip(tmp_path):
    path = tmp_path / "labels.txt"
    assert may_be_replaced(path)
    names = {0: "background", 4: 'the "big" one', 7: "Flüssigkeit"}
    path.write_text(label_descriptions({**names, -1: "not for ITK-SNAP"}), encoding="utf-8")
    assert read_label_descriptions(path) == {**names, 4: "the 'big' one"}
    assert may_be_replaced(path)
    for line in path.read_text(encoding="utf-8").splitlines()[5:]:  # of ITK-SNAP's columns
        numbers = line.split('"')[0].split()
        assert len(numbers) == 7
        assert all(0 <= int(part) <= 255 for part in numbers[1:4])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "found no names of labels"),
        ("1 liver\n", "line 1 is no label.*; expected a value, its colour and its name"),
        ('1 255 0 0 1 1 1 "a"\n1 0 0 0 1 1 1 "b"\n', "line 2 .*each value once"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_other_files(tmp_path, text, words):
    path = tmp_path / "labels.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        read_label_descriptions(path)


def test_a_pipe_is_not_read(tmp_path):
    path = tmp_path / "labels.txt"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"labels\.txt is a named pipe"):
        read_label_descriptions(path)
    assert not may_be_replaced(path)
