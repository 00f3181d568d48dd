"""Serving of a session until the user ends it."""

from __future__ import annotations

import contextlib
import importlib
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from importlib.util import find_spec

from sparse3dunet.annotate.browser.session import Session
from sparse3dunet.errors import DataError

HOST = "127.0.0.1"
PACKAGES = ("starlette", "uvicorn")
USED_LATER = ("sparse3dunet.densify.propagated", "sparse3dunet.densify.densifier", "sparse3dunet.densify.suggest")


def check_packages() -> None:
    """Raise DataError if a package that only this command needs is missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DataError(
            f"the command annotate needs the package {' and '.join(missing)}, which is not installed. Install it: "
            "pip install 'sparse3dunet[annotate]', or pip install starlette uvicorn."
        )


def serve(session: Session, port: int = 0, on_start: Callable[[str], None] = print, open_page: bool = True) -> None:
    """Serve the page on this machine until Ctrl-C, and then write all that was drawn.

    Args:
        session: the session.
        port: port; 0 for any that is free.
        on_start: called with the address of the page.
        open_page: whether to open it in the browser.

    Raises:
        DataError: when the port cannot be used, or a package is missing.
    """
    check_packages()
    import uvicorn

    from sparse3dunet.annotate.browser.server import make_app

    token = secrets.token_urlsafe(24)
    listener = _listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
    config = uvicorn.Config(
        make_app(session, token), log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=2
    )
    session.runs.prepare()
    threading.Thread(target=_import_ahead, daemon=True).start()
    on_start(address)
    if open_page:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        session.runs.close()
        session.save()
        listener.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.bind((HOST, port))
        listener.listen()  # from now on requests wait until the server answers
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"--port {port} cannot be used ({reason}); pass another one, or 0 for any.") from error
    return listener


def _import_ahead() -> None:
    """Import what shows previews, so that the first one need not wait for it."""
    for name in USED_LATER:
        importlib.import_module(name)
