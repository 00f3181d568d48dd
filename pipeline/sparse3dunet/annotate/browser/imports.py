"""Import of what takes seconds, by one thread at a time: the page is there before."""

from __future__ import annotations

import importlib
import threading

USED_LATER = (
    "sparse3dunet.densify.schedule",
    "sparse3dunet.densify.propagated",
    "sparse3dunet.densify.densifier",
    "sparse3dunet.densify.suggest",
)
"""What starts runs, and what shows previews."""
_LOCK = threading.Lock()


def import_later() -> None:
    """Import USED_LATER, or wait until another thread has done so.

    MONAI's modules import each other; two threads that begin at different ones would get one that is incomplete.
    """
    with _LOCK:
        for name in USED_LATER:
            importlib.import_module(name)
