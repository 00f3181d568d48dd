"""Bad lists and folders: each ends in one message with the file, what was found and expected, and the cure."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import make_dataset, make_volume, write_nifti
from tests.data.test_checks import change, shift
from tests.data.test_datalist import change_json
from tests.data.test_layouts import make_nnunet

LIST = "dataset.json"


def make_pairs(root):
    """A plain folder: images/ and labels/, in which nothing is declared."""
    for number in range(2):
        image, dense, _ = make_volume(number)
        write_nifti(root / f"images/case_{number}.nii.gz", image)
        write_nifti(root / f"labels/case_{number}.nii.gz", dense)


def declared(**changes):
    """A fault: other contents of dataset.json."""
    return lambda root: change_json(root, **changes)


def cases(**changes):
    """A fault: other entries of the second case in dataset.json; None takes one out."""

    def spoil(root):
        training = json.loads((root / LIST).read_text())["training"]
        training[1] = {key: value for key, value in {**training[1], **changes}.items() if value is not None}
        change_json(root, training=training)

    return spoil


def text(content):
    """A fault: another text in dataset.json."""
    return lambda root: (root / LIST).write_text(content)


def moved(old, new):
    def spoil(root):
        (root / new).parent.mkdir(exist_ok=True)
        (root / old).rename(root / new)

    return spoil


def listed_twice(root):
    training = json.loads((root / LIST).read_text())["training"]
    change_json(root, training=[*training, training[0]])


def one_name(root):
    shutil.copytree(root / "labelsTr", root / "moreLabels")
    shutil.copy(root / "imagesTr/case_1.nii.gz", root / "imagesTr/case_0.NII.GZ")
    cases(image="imagesTr/case_0.NII.GZ", label="moreLabels/case_0.nii.gz")(root)


def renamed(ending):
    """A fault: an image with another ending, and listed so."""

    def spoil(root):
        moved("imagesTr/case_1.nii.gz", f"imagesTr/case_1{ending}")(root)
        cases(image=f"imagesTr/case_1{ending}")(root)

    return spoil


def text_file(root):
    renamed(".nii")(root)
    (root / "imagesTr/case_1.nii").write_text("x, y, z\n" * 99)


def of_all(folder, function):
    """A fault: all volumes of a folder as `function` makes them."""

    def spoil(root):
        for path in sorted((root / folder).iterdir()):
            change(path, function)

    return spoil


def sliced(specification):
    """A fault: label maps that are empty where nobody annotated, with these annotated slices in dataset.json."""

    def spoil(root):
        of_all("labelsTr", lambda label: np.where(label == 3, 0, label))(root)
        change_json(root, annotated_slices=specification)

    return spoil


without_background = of_all("labelsTr", lambda label: np.where(label == 0, 3, label))


def both_linked(root):
    for folder in ("imagesTr", "labelsTr"):
        (root / folder / "case_1.nii.gz").unlink()
        (root / folder / "case_1.nii.gz").symlink_to(root / "labelsDense/case_1.nii.gz")


OBJECT = ("expected a JSON object", '{"training": [{"image"', "Correct it")
CASE = ("training case 1", "must have an image", '{"image": "imagesTr/a.nii.gz"', "Correct the list")
TRAINING = ("expected a list of image and label", '{"training": [{"image"')
CLASSES = ("must name at least two classes", '"background": 0, "tubule": 1', "Correct")
OUTSIDE = ("lies outside", "Move the file into the folder")
SLICES = ('annotated slices are written {"axial": [3, 20]', "Correct")
INDEX = ("Indices are whole numbers and count from 0", "correct it")
WHOLE = ("must be a whole number", "as 255 or [4, 255]")
CHANNELS = ('must be like {"0": "MRI"', "Correct")

DECATHLON = {  # the fault, the file that the message names, and words for found, expected and cure
    "JSON cut short": (text('{"training": ['), LIST, "not readable as JSON", "Correct it, or export it again"),
    "JSON in another encoding": (
        lambda r: (r / LIST).write_bytes(b"\xff\xfe{"),
        LIST,
        "not readable as JSON",
        "Correct",
    ),
    "a class twice": (
        text('{"labels": {"0": "background", "1": "liver", "1": "kidney"}}'),
        LIST,
        "the key '1' is there 2 times",
        "Correct",
    ),
    "JSON too deep": (text("[" * 99999), LIST, "not readable as JSON", "Correct"),
    "JSON list": (text('["a.nii.gz"]'), LIST, "found list", *OBJECT),
    "JSON number": (text("5"), LIST, "found int", *OBJECT),
    "no training": (text("{}"), LIST, "found None", *TRAINING),
    "training is empty": (declared(training=[]), LIST, "found []", *TRAINING),
    "training of texts": (declared(training=["a.nii"]), LIST, "found 'a.nii'", "training case 0", *CASE[1:]),
    "validation is no list": (declared(validation="case_1"), LIST, "found 'case_1'", 'must be a list like "training"'),
    "case without a label": (cases(label=None), LIST, "found {'image'", *CASE),
    "case without an image": (cases(image=None), LIST, "found {'label'", *CASE),
    "image is a number": (cases(image=3), LIST, "found {'image': 3", *CASE),
    "two labels": (cases(label=["labelsTr/case_0.nii.gz"] * 2), LIST, "found {'image'", *CASE),
    "two references": (
        cases(reference=["a.nii", "b.nii"]),
        LIST,
        "reference of training case 1",
        "['a.nii'",
        "one path",
    ),
    "weight is a number": (cases(weight=0.5), LIST, "weight of training case 1", "found 0.5", "one path"),
    "path upwards": (cases(image="../../case_1.nii.gz"), "", "../../case_1.nii.gz", *OUTSIDE),
    "absolute path": (cases(label="/tmp/case_1.nii.gz"), "", "/tmp/case_1.nii.gz", *OUTSIDE),
    "listed twice": (listed_twice, LIST, "several cases have the same name", "imagesTr/case_0.nii.gz", "list it once"),
    "one name in one folder": (
        one_name,
        LIST,
        "several cases have the same name",
        "imagesTr/case_0.NII.GZ",
        "a different one",
    ),
    "image as label": (
        cases(label="imagesTr/case_1.nii.gz"),
        *(LIST, "both the image of case_1 and the label of case_1", "needs its own file", "correct the list"),
    ),
    "image and label linked to one file": (
        both_linked,
        *(LIST, "both the image of case_1 and the label of case_1", "needs its own file", "correct the list"),
    ),
    "PNG": (
        renamed(".png"),
        "imagesTr/case_1.png",
        "does not have the suffix of an image",
        "expected one of .nii.gz",
        "Export",
    ),
    "NIfTI named like NRRD": (
        renamed(".nrrd"),
        "imagesTr/case_1.nrrd",
        "cannot be read",
        "expected a whole image",
        "export it again",
    ),
    "a text file": (
        text_file,
        "imagesTr/case_1.nii",
        "its header is damaged, or not NIfTI",
        "export it again",
    ),
    "path too long": (cases(image="a" * 300 + ".nii"), "a" * 300 + ".nii", "does not exist", "Put the file there"),
    "one class": (declared(labels={"0": "background"}), LIST, "found {'0': 'background'}", *CLASSES),
    "no background": (
        declared(labels={"1": "shell", "2": "core"}),
        *(LIST, "found {'1': 'shell', '2': 'core'}", "has no background", '{"0": "background", "1": "tubule"}'),
    ),
    "regions": (declared(labels={"background": 0, "all": [1, 2]}), LIST, "found {'background': 0, 'all'", *CLASSES),
    "one value twice": (declared(labels={"background": 0, "a": 1, "b": 1}), LIST, "'b': 1", *CLASSES),
    "one name twice": (declared(labels={"0": "a", "1": "b", "2": "b"}), LIST, "'b' is there twice", "Correct them"),
    "blank name": (declared(labels={"0": "a", "1": " "}), LIST, "' ' is blank", "Correct them"),
    "name of two lines": (declared(labels={"0": "a", "1": "b\nc"}), LIST, "a line break", "Correct them"),
    "colours are a list": (declared(colors=["red"]), LIST, "found ['red']", '"colors" must be', "Correct it"),
    "a colour by its name": (declared(colors={"1": "red"}), LIST, "found 'red'", '{"1": "#e69f00"}', "Correct it"),
    "labels are a list": (declared(labels=["background", "a"]), LIST, "found ['background', 'a']", *CLASSES),
    "unlabeled is a class": (
        declared(ignore_index=2),
        *(LIST, "ignore_index 2 is also a class", "other than 0, 1, 2", "Choose another", "for example 3"),
    ),
    "unlabeled is a text": (declared(ignore_index="3"), LIST, "found '3'", *WHOLE),
    "unlabeled is too large": (declared(ignore_index=2**70), LIST, f"found {2**70}", *WHOLE),
    "class that is infinite": (declared(labels={"a": 0, "b": float("inf")}), LIST, "inf", *CLASSES),
    "modality is a number": (declared(modality=1), LIST, '"modality"', "found 1", *CHANNELS),
    "modality is a text": (declared(modality="MRI"), LIST, '"modality"', "found 'MRI'", *CHANNELS),
    "two channels declared": (
        declared(
            modality={"0": "T1", "1": "T2"},
            training=[{"image": "imagesTr/case_1.nii.gz", "label": "labelsTr/case_1.nii.gz"}],
        ),
        *("imagesTr/case_1.nii.gz", "found shape (24, 20, 18)", "expected a 3D image with 2 channel", "modality"),
    ),
    "no labelled background": (
        without_background,
        *(LIST, "no voxel of any case is labelled background", "expected background on every", "Label the background"),
    ),
    "background in an unreadable label alone": (
        lambda root: [without_background(root), (root / "labelsTr/case_1.nii.gz").write_bytes(b"")],
        *("labelsTr/case_1.nii.gz", "cannot be read", "expected a whole NIfTI file", "export it again"),
    ),
    "unlabeled everywhere": (
        lambda root: (of_all("labelsTr", lambda a: a * 0 + 3)(root), cases(label="labelsDense/case_1.nii.gz")(root)),
        *("labelsTr/case_0.nii.gz", "no voxel is annotated", "ignore_index: 3", "Annotate at least one slice"),
    ),
    "slice out of range": (
        cases(annotated_slices={"axial": [9, 18]}),
        *("labelsTr/case_1.nii.gz", "lists 18 under 'axial'", "has the slices 0 ... 17", *INDEX),
    ),
    "negative slice": (sliced({"2": [-1]}), LIST, "lists -1 under '2'", *INDEX),
    "slice as text": (sliced({"axial": ["9"]}), LIST, "lists '9' under 'axial'", *INDEX),
    "slice as float": (sliced([[], [], [9.0]]), LIST, "lists 9.0 under '2'", *INDEX),
    "slice is true": (sliced({"axial": True}), LIST, "lists True under 'axial'", *INDEX),
    "unknown plane": (sliced({"transverse": [9]}), LIST, "contains 'transverse'", *SLICES),
    "unknown word": (sliced("axail"), LIST, "contains 'axail'", *SLICES),
    "unknown axis": (sliced({"3": [9]}), LIST, "contains '3'", *SLICES),
    "no slices": (sliced({}), LIST, "lists no slice", *SLICES),
    "no slices in a list": (sliced([[], [], []]), LIST, "lists no slice", *SLICES),
    "two lists of slices": (sliced([[9], [9]]), LIST, "is [[9], [9]]", *SLICES),
    "one list of slices": (sliced([3, 9, 12]), LIST, "is [3, 9, 12]", *SLICES),
    "slices are a number": (sliced(0.5), LIST, "is 0.5", *SLICES),
    "slices of a case": (cases(annotated_slices={"axal": [1]}), LIST, "training case 1", "contains 'axal'", *SLICES),
}


@pytest.mark.parametrize("fault", DECATHLON)
def test_bad_decathlon_folder(tmp_path, error_of, fault):
    spoil, file, *words = DECATHLON[fault]
    root = make_dataset(tmp_path / "data", 2)
    spoil(root)
    message = error_of("check", root)
    assert str(root / file) in message, message
    assert all(word in message for word in words), message


def of_one_case(spoil):
    """A fault in a plain folder of a single case."""
    return lambda root: [spoil(root), *((root / folder / "case_1.nii.gz").unlink() for folder in ("images", "labels"))]


def only(name, spoil):
    """A fault in one file of a folder."""
    return lambda root: spoil(root / name)


NNUNET = {
    "missing channel": (
        only("imagesTr/kidney_1_0001.nii.gz", lambda p: p.unlink()),
        *("imagesTr/kidney_1_0001.nii.gz", "does not exist", "expected an image file", "Put the file there"),
    ),
    "no channel numbers": (
        moved("imagesTr/kidney_1_0000.nii.gz", "imagesTr/kidney_1.nii.gz"),
        *("imagesTr/kidney_1_0000.nii.gz", "does not exist", "expected an image file", "Put the file there"),
    ),
    "wrong numTraining": (
        declared(numTraining=3),
        LIST,
        '"numTraining" is 3',
        "contains 2 labels",
        "correct the number",
    ),
    "numTraining is text": (
        declared(numTraining="2"),
        LIST,
        "\"numTraining\" is '2'",
        "expected a whole number, as 2",
        "Correct it",
    ),
    "unsupported ending": (
        declared(file_ending=".png"),
        LIST,
        "'.png'",
        "supported are .nii.gz",
        "Convert the files",
    ),
    "another ending": (
        declared(file_ending=".nii"),
        "labelsTr",
        "no label (*.nii)",
        "expected nnU-Net's layout",
        "correct",
    ),
    "label without image": (
        lambda root: [p.unlink() for p in (root / "imagesTr").glob("kidney_1_*")],
        *("imagesTr/kidney_1_0000.nii.gz", "does not exist", "expected an image file", "Put the file there"),
    ),
    "image without label": (
        only("labelsTr/kidney_1.nii.gz", lambda p: p.unlink()),
        *("labelsTr/kidney_1.nii.gz", "does not exist", "the label of the image kidney_1_0000", "Put it there"),
    ),
    "channels of two shapes": (
        only("imagesTr/kidney_1_0001.nii.gz", lambda p: change(p, lambda a: a[1:])),
        *("imagesTr/kidney_1_0001.nii.gz", "(23, 20, 18)", "(24, 20, 18)", "same grid", "resample this one"),
    ),
    "channels of two affines": (
        only("imagesTr/kidney_1_0001.nii.gz", lambda p: shift(p, 0.05)),
        *("imagesTr/kidney_1_0001.nii.gz", "affine differs", "the image's first channel", "Copy the first channel's"),
    ),
    "4D channel": (
        only("imagesTr/kidney_1_0001.nii.gz", lambda p: change(p, lambda a: np.stack([a] * 2, -1))),
        *("imagesTr/kidney_1_0001.nii.gz", "found shape (24, 20, 18, 2)", "expected a 3D image", "split into volumes"),
    ),
    "no channel names": (declared(channel_names={}), LIST, '"channel_names"', "found None", *CHANNELS),
    "channel names are a text": (declared(channel_names="T1"), LIST, '"channel_names"', "found 'T1'", *CHANNELS),
    "no labels declared": (declared(labels=None), LIST, '"labels" is missing', "expected", "Add it"),
    "dataset of texts": (
        declared(dataset={"a": "b"}),
        LIST,
        "found {'a': 'b'}",
        '"dataset" must be like',
        "Correct it",
    ),
}

PLAIN = {
    "empty folder": (
        lambda root: [shutil.rmtree(root / name) for name in ("images", "labels")],
        *("", "is not a data set", "it contains no dataset.json", "data/README.md"),
    ),
    "no label": (
        only("labels/case_1.nii.gz", lambda p: p.unlink()),
        *("images/case_1.nii.gz", "this image has no label", "1 of 2", "Name the label like the image"),
    ),
    "no image": (
        only("images/case_1.nii.gz", lambda p: p.unlink()),
        *("labels/case_1.nii.gz", "this label has no image", "1 of 2", "Name the image like the label"),
    ),
    "image of another kind": (
        moved("images/case_1.nii.gz", "images/case_1.png"),
        *("labels/case_1.nii.gz", "this label has no image", "1 of 2", "Name the image like the label"),
    ),
    "a folder named like a label": (
        lambda root: [(root / "labels/case_1.nii.gz").unlink(), (root / "labels/case_1.nii.gz").mkdir()],
        *("labels/case_1.nii.gz", "is a folder", "expected an image file", "Put the file there"),
    ),
    "all background": (
        of_all("labels", lambda a: a * 0),
        "",
        "1 value(s), 0,",
        "expected 2 to 255 classes",
        "Check that",
    ),
    "unreadable labels": (
        of_one_case(lambda root: (root / "labels/case_0.nii.gz").write_bytes(b"")),
        *("labels/case_0.nii.gz", "cannot be read", "expected a whole NIfTI file", "export it again"),
    ),
    "images as labels": (
        of_all("labels", lambda a: (np.arange(a.size) % 999).reshape(a.shape).astype(np.int16)),
        *("labels/case_0.nii.gz", "999 value(s), 0, 1,", "expected 2 to 255 classes", "not images"),
    ),
    "classes that are too large": (
        of_all("labels", lambda a: np.where(a == 2, 2**16, a.astype(np.int32))),
        *("", "class value 65536", "expected -32768 ... 32767", "pass it as ignore_index"),
    ),
    "float labels": (
        only("labels/case_1.nii.gz", lambda p: change(p, lambda a: a * np.float32(0.9))),
        *("labels/case_1.nii.gz", "label value 0.9, 1.8", "labels must be whole numbers", "Round"),
    ),
    "one series over time": (
        only("images/case_0.nii.gz", lambda p: change(p, lambda a: np.stack([a] * 5, -1))),
        *("images/case_0.nii.gz", "found shape (24, 20, 18, 5)", "expected a 3D image with 1 channel", "split into"),
    ),
}


@pytest.mark.parametrize("fault", [*NNUNET, *PLAIN])
def test_bad_folder(tmp_path, error_of, fault):
    spoil, file, *words = (NNUNET | PLAIN)[fault]
    root = tmp_path / "data"
    (make_nnunet if fault in NNUNET else make_pairs)(root)
    spoil(root)
    message = error_of("check", root)
    assert str(root / file) in message, message
    assert all(word in message for word in words), message
