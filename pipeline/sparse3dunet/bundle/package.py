"""Packaging of a trained model as a self-contained bundle for MONAI's tools, the model zoo, Label and Deploy."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from sparse3dunet import __version__
from sparse3dunet.bundle import contents
from sparse3dunet.datasets import mni152
from sparse3dunet.errors import DataError
from sparse3dunet.io.payload import check_no_pipe
from sparse3dunet.io.writing import draft_path, move, remove
from sparse3dunet.io.written import file_digest
from sparse3dunet.models.checkpoints import save_file
from sparse3dunet.models.loading import Model, load_model

DEFAULT_NAME = "sparse3dunet_segmentation"
SUMS = "SHA256SUMS"
"""List of the files and their checksums in sha256sum's format; also identifies a folder as a packaged bundle."""
STANDALONE = "standalone.yaml"
PAGE = Path("annotate", "browser")
"""Code that bundles do not contain: it annotates scans in the browser, with files of 3 MB that no model needs."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """Files of a packaged bundle.

    Attributes:
        folder: the bundle.
        archive: the same as a .zip that contains the folder.
        notes: for the user, what the bundle lacks, and why.
    """

    folder: Path
    archive: Path
    notes: list[str]


def package(
    model: str | Path,
    output_dir: str | Path,
    name: str = DEFAULT_NAME,
    *,
    version: str = __version__,
    data_license: str | Path | None = None,
    overwrite: bool = False,
) -> Package:
    """Write a trained model as a bundle, as the folder ``name`` and as ``name-version.zip``.

    The same model gives the same files, byte for byte, except for TorchScript, whose order varies.
    They appear only when they are complete.

    Args:
        model: a training's folder, or its ``model.pt``.
        output_dir: folder to write to.
        name: name of the bundle: letters, digits, ``_``, ``-`` and ``.``.
        version: version of the bundle, such as 1.0.0.
        data_license: text file with the licence of the data that the model was trained on; known for the built-in data.
        overwrite: whether to replace an earlier bundle of that name, unless files in it were changed or added.

    Raises:
        DataError: when the model cannot be loaded or packaged, or the place of the bundle is occupied.
    """
    trained = _trained(model)
    _check_names(name, version)
    licence = _data_licence(trained, data_license)
    source = contents.bundle_folder()
    target = Path(output_dir).expanduser()
    folder, archive = target / name, target / f"{name}-{version}.zip"
    _check_free(folder, archive, overwrite)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _draft(draft_path(folder, "")) as draft:
            new_folder, new_archive = draft / name, draft / archive.name
            notes = _write(trained, source, new_folder, version, licence)
            _check_neutral(new_folder, source, [Path(model), target])
            _write_sums(new_folder)
            _write_zip(new_folder, new_archive)
            move(new_folder, folder)
            move(new_archive, archive)
    except OSError as error:
        raise DataError(f"{target.absolute()}: a bundle cannot be written there ({error}). Pass another -o.") from error
    return Package(folder, archive, notes)


def _trained(path: str | Path) -> Model:
    if Path(path).suffix.lower() == ".ts":
        raise DataError(
            f"{path}: TorchScript has no weights for further training. Pass the training's folder, or its model.pt."
        )
    model = load_model(path)
    if model.description.network is None:
        raise DataError(f"{path}: not a UNet3D, as the bundle's configs require. Pass a training's folder.")
    if model.description.regions:
        raise DataError(
            f"{path}: was trained for regions ({', '.join(model.description.regions)}), whose sigmoid outputs MONAI's "
            "tools would take for classes. Only models for classes can be packaged; predict with sparse3dunet."
        )
    if model.description.normalize:
        raise DataError(
            f"{path}: was trained with another normalisation ({' and '.join(model.description.normalize)}) than that "
            "of the bundle's configs. Only models that were trained with the bundle's own can be packaged."
        )
    return model


def _check_names(name: str, version: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name, re.ASCII):
        raise DataError(f"--name is {name!r}; expected letters, digits, _, - and ., such as {DEFAULT_NAME}.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version, re.ASCII):
        raise DataError(f"--version is {version!r}; expected three numbers such as 1.0.0.")


def _data_licence(model: Model, file: str | Path | None) -> str:
    if file is None:
        return mni152.LICENCE if contents.is_built_in(model) else contents.NO_LICENCE
    check_no_pipe(Path(file).expanduser())
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: the data's licence cannot be read as text ({error}). Pass a text file.") from error


# ---------------------------------------------------------------- place of the bundle


def _check_free(folder: Path, archive: Path, overwrite: bool) -> None:
    """Raise DataError unless nothing is there, or, with `overwrite`, unchanged bundles of this command."""
    for path, check in ((folder, _check_former_folder), (archive, _check_former_archive)):
        if path.is_symlink() or path.exists():
            if not overwrite:
                raise DataError(
                    f"{path.absolute()} exists already. Pass --overwrite to replace it, or another --name or -o."
                )
            check(path)


def _check_former_folder(folder: Path) -> None:
    sums = folder / SUMS
    if folder.is_symlink() or not sums.is_file():
        raise DataError(f"{folder.absolute()} is not a bundle of this command and is kept. Pass another --name.")
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for path in _files(folder):
        inside = path.relative_to(folder).as_posix()
        if inside != SUMS and not path.suffix == ".pyc" and listed.get(inside) != file_digest(path):
            raise DataError(
                f"{path.absolute()} was added to the bundle or changed, and would be lost. Move {folder.absolute()} "
                "away, or pass another --name or -o."
            )


def _check_former_archive(archive: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            ours = any(name.split("/")[1:] == [SUMS] for name in content.namelist())
    except (OSError, zipfile.BadZipFile):
        ours = False
    if archive.is_symlink() or not ours:
        raise DataError(f"{archive.absolute()} is not a bundle of this command and is kept. Pass another --name.")


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Make a temporary empty folder."""
    remove(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- contents of the bundle


def _write(model: Model, source: Path, folder: Path, version: str, licence: str) -> list[str]:
    """Write all files except the checksums; return the notes."""
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    notes = _write_configs(model, source, folder / "configs", version)
    _put(folder / "LICENSE", (source / "LICENSE").read_text(encoding="utf-8"))
    page = (source / "docs/README.md").read_text(encoding="utf-8")
    _put(folder / "docs/README.md", contents.page_of(model, page, folder.name))
    _put(folder / "docs/data_license.txt", licence)
    _put(folder / "models/model.json", model.description.to_json())
    save_file(folder / "models/model.pt", model.network.state_dict())
    _write_torchscript(model, folder)
    for file in [*contents.CODE.rglob("*.py"), *contents.CODE.rglob("*.j2"), contents.CODE / "py.typed"]:
        inside = file.relative_to(contents.CODE)
        if inside.is_relative_to(PAGE):
            continue
        copy = folder / "sparse3dunet" / inside
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return notes


def _write_configs(model: Model, source: Path, folder: Path, version: str) -> list[str]:
    notes = []
    values = contents.config_values(model)
    for file in sorted((source / "configs").glob("*.yaml")):
        if file.name == STANDALONE and not contents.keeps_size(model):
            continue
        text = contents.with_values(file.read_text(encoding="utf-8"), values.get(file.name, {}))
        _put(folder / file.name, text)
        # monai.bundle.load() and the model zoo read only JSON
        _put(folder / file.with_suffix(".json").name, _json(ConfigParser.load_config_file(str(folder / file.name))))
    if not (folder / STANDALONE).is_file():
        notes.append(
            "no configs/standalone.yaml, and no inference config in model.ts: MONAI alone cannot run a network whose "
            "output is smaller than its input (valid convolutions). MONAI Deploy's operator needs both."
            if not contents.keeps_size(model)
            else f"no configs/standalone.yaml: {source / 'configs'} has none."
        )
    shutil.copyfile(source / "configs/logging.conf", folder / "logging.conf")
    base = json.loads((source / "configs/metadata.json").read_text(encoding="utf-8"))
    _put(folder / "metadata.json", _json(contents.metadata_of(model, base, folder.parent.name, version)))
    return notes


def _write_torchscript(model: Model, folder: Path) -> None:
    """Write ``model.ts`` as ``torch.jit.save``, without debugging records, which name folders of this machine."""
    extra = {"metadata.json": "configs/metadata.json", "model.json": "models/model.json"}
    if (folder / "configs" / STANDALONE).is_file():
        extra["inference.json"] = "configs/standalone.json"
    script = io.BytesIO()
    files = {name: (folder / file).read_bytes() for name, file in extra.items()}
    torch.jit.save(torch.jit.script(model.network), script, _extra_files=files)
    with zipfile.ZipFile(script) as saved, zipfile.ZipFile(folder / "models/model.ts", "w") as target:
        for name in saved.namelist():
            if not name.endswith(".debug_pkl"):
                # Readers of its extra files expect the archive to have the name of the file.
                target.writestr(zipfile.ZipInfo(f"model/{name.partition('/')[2]}", _EARLIEST), saved.read(name))
    load_model(folder / "models/model.ts")


def _json(content: object) -> str:
    return json.dumps(content, indent=2) + "\n"


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _files(folder: Path) -> list[Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())


def _check_neutral(folder: Path, source: Path, named: Iterable[Path]) -> None:
    """Raise DataError if a file names folders of this machine more often than the bundle's source does."""
    places = [Path.cwd(), Path.home(), contents.CODE.parent, *named]
    paths = {str(path.expanduser().absolute()) for path in places if len(path.expanduser().absolute().parts) > 2}
    for file in _files(folder):
        inside = file.relative_to(folder)
        if inside.parts[0] == contents.CODE.name:
            continue  # a copy of the code
        origin = source / inside
        if inside.parts[0] == "configs" and not origin.is_file():
            origin = origin.with_suffix(".yaml")  # its original
        content, before = file.read_bytes(), origin.read_bytes() if origin.is_file() else b""
        for path in paths:
            if content.count(path.encode()) > before.count(path.encode()):
                raise DataError(
                    f"{inside} would contain {path}, a folder of this machine. Correct its source (a data licence, or "
                    "model.json), and package again."
                )


def _write_sums(folder: Path) -> None:
    lines = [f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    _put(folder / SUMS, "".join(lines))


def _write_zip(folder: Path, archive: Path) -> None:
    """Write an archive without times, owners or compression, whose result would depend on the library."""
    with zipfile.ZipFile(archive, "w") as content:
        for path in _files(folder):
            entry = zipfile.ZipInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}", _EARLIEST)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            content.writestr(entry, path.read_bytes())
