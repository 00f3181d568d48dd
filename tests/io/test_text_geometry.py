"""Voxel sizes of NRRD and MetaImage: in their units, or known to be missing."""

import re

import numpy as np
import pytest

from sparse3dunet.errors import DataError
from sparse3dunet.io import read_image
from sparse3dunet.io.defaults import VOXEL_SIZE
from tests.io.test_formats import voxels


def write_header(path, fields):
    """Write an image of 7 x 6 x 5 voxels with nothing but the fields that it must have, and these."""
    if path.suffix == ".nrrd":
        header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: 7 6 5\nencoding: raw\nendian: little\n{fields}\n"
    else:
        header = f"NDims = 3\nDimSize = 7 6 5\n{fields}BinaryData = True\nElementType = MET_SHORT\n"
        header += "ElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + voxels().tobytes("F"))
    return path


PLACE = "space: RAS\nspace directions: (0,2,0) (1,0,0) (0,0,3)\nspace origin: (9,9,9)\n"


@pytest.mark.parametrize(
    ("name", "fields", "spacing"),
    [
        ("a.nrrd", PLACE, (2, 1, 3)),
        ("a.nrrd", PLACE + 'space units: "um" "microns" "µm"\n', (0.002, 0.001, 0.003)),
        ("a.nrrd", PLACE + 'space units: "" "???" "mm"\n', (2, 1, 3)),
        ("a.nrrd", 'spacings: 1 2 3\nunits: "cm" "mm" "um"\n', (10, 2, 0.003)),
        ("a.nrrd", 'spacings: 1 2 3\nunits: "pixel" "pixel" "pixel"\n', None),
        ("a.nrrd", "spacings: 1 nan 2\n", None),
        ("a.nrrd", "space: RAS\nspace directions: (2,0,0) (0,2,0) none\n", None),
        ("a.nrrd", "", None),
        ("a.mha", "ElementSpacing = 1 2 3\n", (1, 2, 3)),
        ("a.mha", "ElementSpacing = 1 2 3\nDistanceUnits = um\n", (0.001, 0.002, 0.003)),
        ("a.mha", "ElementSize = 1 2 3\nDistanceUnits = cm\n", (10, 20, 30)),
        ("a.mha", "ElementSpacing = 1 2 3\nDistanceUnits = ?\n", (1, 2, 3)),
        ("a.mha", "", None),
    ],
)
def test_units_and_missing_voxel_sizes(tmp_path, monkeypatch, name, fields, spacing):
    """ITK takes any unit for mm, and a missing voxel size for 1 mm."""
    path = write_header(tmp_path / name, fields)
    image = read_image(path)
    np.testing.assert_allclose(image.spacing, spacing or (1, 1, 1), rtol=1e-6)
    assert image.has_voxel_size == (spacing is not None)
    np.testing.assert_array_equal(image.data, voxels())
    if fields.startswith(PLACE):
        np.testing.assert_allclose(image.affine[:3, 3], np.array(image.spacing)[[1, 0, 2]] * 9 / (1, 2, 3), rtol=1e-6)
    monkeypatch.setenv(VOXEL_SIZE, "0.5,0.5,2mm")
    np.testing.assert_allclose(read_image(path).spacing, spacing or (0.5, 0.5, 2), rtol=1e-6)
    assert read_image(path).has_voxel_size


@pytest.mark.parametrize(
    ("name", "fields"),
    [("a.nrrd", PLACE + 'space units: "ell" "mm" "mm"\n'), ("a.mha", "ElementSpacing = 1 2 3\nDistanceUnits = ell\n")],
)
def test_unknown_units_are_refused(tmp_path, name, fields):
    with pytest.raises(DataError, match="nits has an unknown unit; expected one of length: nm, um, mm, cm") as error:
        read_image(write_header(tmp_path / name, fields))
    assert "ell" not in str(error.value).replace("a.nrrd", "")


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("a.nrrd", PLACE + 'space units: "Doe" "mm" "mm"\n', "unknown unit"),
        ("a.nrrd", 'spacings: 1 2 3\nunits: "mm" "Doe" "mm"\n', "unknown unit"),
        ("a.nrrd", "space: Doe\nspace directions: (0,2,0) (1,0,0) (0,0,3)\n", "couldn't parse space"),
        ("a.nrrd", "space dimension: Doe\n", "couldn't parse"),
        ("a.nrrd", "centers: Doe cell cell\n", "couldn't parse center"),
        ("a.nrrd", "byte skip: Doe\n", "byteskip is text of 3 character"),
        ("a.nrrd", "data file: Doe%s\n", "data file has a %"),
        ("a.mha", "ElementSpacing = 1 2 3\nDistanceUnits = Doe\n", "unknown unit"),
        ("a.mha", "ElementSpacing = Doe 2 3\n", "ElementSpacing is text of 7 character"),
        ("a.mha", "ObjectType = Doe\n", "expected Image"),
        ("a.mha", "CompressedData = Doe\n", "expected True or False"),
        ("a.mha", "HeaderSize = -7 7\n", "HeaderSize is '-7 7', expected whole numbers"),
    ],
)
def test_messages_quote_numbers_of_a_header_but_no_text(tmp_path, name, fields, words):
    with pytest.raises(DataError, match=words) as error:
        read_image(write_header(tmp_path / name, fields))
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize("field", ["type", "encoding", "dimension", "sizes"])
def test_messages_quote_no_text_in_place_of_what_each_header_has(tmp_path, field):
    path = write_header(tmp_path / "a.nrrd", "")
    path.write_bytes(re.sub(rf"{field}: [^\n]*".encode(), f"{field}: Doe".encode(), path.read_bytes()))
    with pytest.raises(DataError, match=f"{field} is text of 3 character") as error:
        read_image(path)
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        *("space dimension: 3", "space: scanner-xyz", "space: 3D-right-handed", "space: 3D-left-handed", ""),
        *("space: right-anterior-superior", "space: LPS", "space: left-anterior-superior"),
    ],
)
def test_a_space_that_is_not_the_patients_is_told(tmp_path, space):
    fields = PLACE.replace("space: RAS", space) if space else "spacings: 1 2 3\n"
    notes = read_image(write_header(tmp_path / "a.nrrd", fields)).notes
    is_named = "rior" in space or "LPS" in space
    assert ["does not name its space" in text for text in notes] == [True] * (not is_named)


@pytest.mark.parametrize(("slope", "offset"), [("2", "0"), ("1", "-1024.0"), ("1", "0"), ("", "")])
def test_an_intensity_function_is_told(tmp_path, slope, offset):
    lines = f"ElementToIntensityFunctionSlope = {slope}\nElementToIntensityFunctionOffset = {offset}\n" if slope else ""
    volume = read_image(write_header(tmp_path / "a.mha", f"ElementSpacing = 1 2 3\n{lines}"))
    np.testing.assert_array_equal(volume.data, voxels())
    is_told = (slope, offset) not in (("1", "0"), ("", ""))
    assert ["is not applied" in text for text in volume.notes] == [True] * is_told
