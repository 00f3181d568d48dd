"""sparse3dunet: dense 3D segmentation learned from volumes of which only some slices are annotated."""

from importlib import import_module
from typing import Any

__version__ = "0.23.0"
__all__ = ["Densifier", "show"]

_PLACES = {
    "Densifier": "sparse3dunet.densify.estimator.SparseDensifier",
    "show": "sparse3dunet.report.notebooks.show",
}


def __getattr__(name: str) -> Any:
    """Return what notebooks use; imported only then, so that importing the package stays fast."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, item = _PLACES[name].rpartition(".")
    return getattr(import_module(module), item)
