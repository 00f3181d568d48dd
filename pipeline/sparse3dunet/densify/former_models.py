"""Models that a former run left in the output folder, as far as they can be trained further."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from sparse3dunet.data.slices import Slices
from sparse3dunet.densify.state import State
from sparse3dunet.errors import DataError
from sparse3dunet.io.writing import aside
from sparse3dunet.models.checkpoints import existing_model
from sparse3dunet.models.description import DESCRIPTION_SUFFIX, ModelDescription, read_description
from sparse3dunet.models.description_checks import NewerDescriptionError
from sparse3dunet.models.loading import load_model


class FormerModels:
    """The final model of a former run, and the one that did not learn the first part of the slices.

    Args:
        final: file of the final model.
        fold: file of the other one.
        is_used: whether the final one is trained further, if it can be.

    Attributes:
        description: description of the final model; None if there is none that can be used.
        fault: what is wrong with a final model that is there; empty for nothing.
        fold_fault: the same of the other one.
    """

    def __init__(self, final: Path, fold: Path, is_used: bool = True) -> None:
        self.final, self.fold, self.is_used = final, fold, is_used
        self.description, self.fault = read_model(final) if is_used else (None, "")
        try:
            self.of_fold, self.fold_fault = read_model(fold)
        except NewerDescriptionError as error:
            self.of_fold, self.fold_fault = None, str(error)

    def missing_for(self, before: State) -> str:
        """Return which model of an unfinished run is missing or damaged, without which it cannot go on; empty if none.

        Args:
            before: state of the run.
        """
        found, fault = (self.description, self.fault) if self.is_used else read_model(self.final)
        if not fault and found is None and (before.goes_on or before.trained):
            fault = f"{self.final} is missing"
        return fault or ("" if before.trained else self.fold_fault)

    def fold_fits(self, description: ModelDescription) -> bool:
        """Return whether the fold's model can be trained further as the one described."""
        return self.of_fold is not None and not differences(self.of_fold, description)


def read_model(file: Path) -> tuple[ModelDescription | None, str]:
    """Return the description of a model that can be loaded, and what is wrong with one that cannot.

    Raises:
        NewerDescriptionError: when a newer version wrote it; its model must not be replaced.
    """
    if not os.path.lexists(file):
        return None, ""
    try:
        if not (file.exists() and stat.S_ISREG(file.stat().st_mode)):
            raise DataError(f"{file} is no regular file")
        description = read_description(file)
        if description.network is None:  # it is not described, so that it can only be read
            existing_model(file)
            return description, ""
        with torch.random.fork_rng(devices=[]):
            network = load_model(file).network
        odd = [name for name, weight in network.state_dict().items() if not bool(torch.isfinite(weight).all())]
        if odd:
            raise DataError(f"{file}: the weights {odd[0]} are not all finite numbers")
    except NewerDescriptionError:
        raise
    except (DataError, OSError) as error:
        return None, " ".join(str(error).split()).split(". ")[0].rstrip(".")
    return description, ""


def differences(before: ModelDescription, now: ModelDescription) -> list[str]:
    """Return the differences that keep a model from being trained further; empty if there are none."""
    # A network that is not a UNet3D is not described, so it cannot be compared
    differing = {
        "another network": before.network != now.network or now.network is None,
        "other classes": before.class_values != now.class_values,
        "other names of classes": before.class_names != now.class_names,
        "another voxel size": before.spacing != now.spacing,
        "another normalisation": (before.normalize, before.intensity) != (now.normalize, now.intensity),
    }
    return [words for words, differs in differing.items() if differs]


def keep_aside(model_file: str | Path) -> Path:
    """Rename a model and its description, which a new one would replace, and return its new path."""
    path = Path(model_file)
    kept = aside(path, path.suffix)
    os.replace(path, kept)
    if path.with_suffix(DESCRIPTION_SUFFIX).is_file():
        os.replace(path.with_suffix(DESCRIPTION_SUFFIX), kept.with_suffix(DESCRIPTION_SUFFIX))
    return kept


def former_names(before: Mapping[str, str], images: Mapping[str, str]) -> dict[str, str]:
    """Return the name in a former run of each case that was in it, or may have been, by its name.

    Another case with the same file name changes the name of the first: CT becomes P001_CT. So files count before names.

    Args:
        before: by name, the first image file of each case of the former run; empty if it is not known.
        images: the same of this one.
    """
    by_file = {file: name for name, file in before.items()}
    found = {name: by_file[file] for name, file in images.items() if file in by_file}
    return {**{name: name for name in images if name not in {*found, *found.values()}}, **found}


def held_out_before(
    state: State, names: Mapping[str, str], learned: Sequence[str]
) -> tuple[dict[str, Slices] | None, list[str]]:
    """Return the slices that a former run's first fold held out, and the cases that it learned, by their names now.

    None instead of the slices if a case that it learned may be among those of this run under a name that is not known:
    the fold's model, which learned all its other slices, must not be judged by them.

    Args:
        state: state of the former run.
        names: see :func:`former_names`.
        learned: cases that the former model learned.
    """
    gone = set(learned) - set(names.values())
    if not state.held_out or any(not os.path.exists(state.images.get(name, "")) for name in gone):
        return None, []
    slices = {name: state.held_out[0][old] for name, old in names.items() if old in state.held_out[0]}
    return slices, [name for name, old in names.items() if old in learned]
