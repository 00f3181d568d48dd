"""What headers say of a patient is in no result, record, message or report."""

import gzip

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from tests.conftest import make_volume, run_sparse3dunet
from tests.densify.test_run import SMALL, write_scan
from tests.io.test_formats_dicom import write_slice

MARK = "SURNAME"
FIELDS = {"descrip": 80, "aux_file": 24, "db_name": 18, "intent_name": 16, "data_type": 10}
"""Texts of a NIfTI header, with their lengths."""
TAGS = ("0010|0010", "0010|0020", "0008|103e", "0008|1030", "0018|1030", "0008|0080", "0020|4000", "0008|0090")


def marked_nifti(path, array, affine=None):
    image = nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine)
    for name in FIELDS.keys() - {"data_type"}:  # which nibabel lacks
        image.header[name] = MARK.encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", f"{MARK} given name".encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def marked_images(folder):
    """An image in each format with the mark wherever text can be; and some that fail."""
    array = make_volume(0)[0]
    marked_nifti(folder / "a.nii.gz", array)
    marked_nifti(folder / "b.nii", array)
    image = sitk.GetImageFromArray(array.T)
    for key in ("Name", "Comment", "patient", "label_0", MARK):
        image.SetMetaData(key, MARK)
    for name in ("c.nrrd", "d.mha", "e.nhdr", "f.mhd"):
        sitk.WriteImage(image, str(folder / name))
    content = (folder / "c.nrrd").read_bytes()
    (folder / "line.nrrd").write_bytes(content.replace(b"dimension: 3", f"{MARK}\ndimension: 3".encode()))
    (folder / "twice.nrrd").write_bytes(
        content.replace(b"kinds:", f"content: {MARK}\ncontent: {MARK}\nkinds:".encode())
    )
    (folder / "cut.mha").write_bytes((folder / "d.mha").read_bytes()[:-99])
    (folder / "comment.mha").write_bytes(f"Comment: {MARK}\n".encode() + (folder / "d.mha").read_bytes())
    (folder / "long.mha").write_bytes(f"Name = {MARK * 99}\n".encode() + (folder / "d.mha").read_bytes())
    (folder / "half.nii.gz").write_bytes(gzip.compress((folder / "b.nii").read_bytes()[:-99]))
    (folder / "=1+1.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes())


def marked_series(folder, series=("1.2.3.4",)):
    array = (make_volume(0)[0] * 5).astype(np.int16)
    for uid in series:
        for k in range(array.shape[2]):
            position = np.array([0.0, 0, 3 * k])
            write_slice(
                folder / f"{uid}_{k}.dcm", array[:, :, k], position, np.eye(3), uid, **dict.fromkeys(TAGS, MARK)
            )
    return folder


def assert_unmarked(folder, *printed):
    names = [str(path) for path in folder.rglob("*")]
    assert not [name for name in names if MARK in name]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            content += gzip.decompress(content) if path.suffix == ".gz" else b""
            assert MARK.encode() not in content, path
    assert not [text for text in printed if MARK in text]


def test_predictions_name_no_patient(trained, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    marked_images(scans)
    sources = [scans, marked_series(tmp_path / "dicom"), marked_series(tmp_path / "two", ("1.2.3.4", "1.2.3.5"))]
    out = tmp_path / "out"
    result = run_sparse3dunet("predict", trained / "models", *sources, "-o", out, "--confidence", "--probabilities")
    assert result.returncode == 1, result.stderr
    assert (out / "summary.csv").exists(), result.stderr
    rows = (out / "summary.csv").read_text().splitlines()
    assert sum(",done," in row for row in rows) == 9
    assert sum(",failed," in row for row in rows) == 6
    assert [row for row in rows if row.startswith("'=1+1,done")]  # no formula
    assert "1.2.3.5 (CT, 18 slice(s))" in (out / "summary.csv").read_text()
    assert_unmarked(out, result.stdout, result.stderr)


def test_a_densified_volume_names_no_patient(tmp_path):
    _, annotation, dense = write_scan(tmp_path)
    scan = marked_series(tmp_path / "series")
    marked_nifti(annotation, np.asarray(nib.load(annotation).dataobj), np.diag([-0.7, -1.3, 3.0, 1.0]))
    result = run_sparse3dunet("densify", scan, annotation, "-o", tmp_path / "out", "--minutes", 0.02, *SMALL)
    assert result.returncode == 0, result.stderr
    assert nib.load(tmp_path / "out/series_seg.nii.gz").shape == dense.shape
    assert_unmarked(tmp_path / "out", result.stdout, result.stderr)
