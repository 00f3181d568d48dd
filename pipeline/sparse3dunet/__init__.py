"""sparse3dunet: dense 3D segmentation learned from volumes of which only some slices are annotated."""

from typing import Any

__version__ = "0.12.0"
__all__ = ["Densifier", "show"]


def __getattr__(name: str) -> Any:
    """Return what notebooks use; imported only then, so that importing the package stays fast."""
    if name == "Densifier":
        from sparse3dunet.densify.estimator import SparseDensifier

        return SparseDensifier
    if name == "show":
        from sparse3dunet.report.notebooks import show

        return show
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
