"""Serving of a session until the user ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from sparse3dunet.annotate.browser.imports import import_later
from sparse3dunet.annotate.browser.session import Session
from sparse3dunet.errors import DataError

HOST = "127.0.0.1"
PACKAGES = ("starlette", "uvicorn")


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
    threading.Thread(target=import_later, daemon=True).start()
    on_start(address)
    if open_page:
        page = _private_page(session.store.folder / "page", address)
        threading.Thread(target=webbrowser.open, args=(page.as_uri(),), daemon=True).start()
    try:
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        session.runs.close()
        session.save()
        listener.close()
        shutil.rmtree(session.store.folder / "page", ignore_errors=True)


def _private_page(folder: Path, address: str) -> Path:
    """Write a page that leads to an address, for this user alone; return its path.

    The browser is started with this path, as other users of the machine see its command line, and the address has the
    token. In the folder for results, as browsers in a sandbox cannot read the system's temporary folder.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a program that was killed
    folder.mkdir(mode=0o700)
    path = folder / "open.html"
    link = f'<meta http-equiv="refresh" content="0; url={address}">\n<a href="{address}">Annotate</a>\n'
    with open(path, "x", encoding="utf-8", opener=partial(os.open, mode=0o600)) as file:
        file.write(f'<!doctype html>\n<meta charset="utf-8">\n<title>sparse3dunet annotate</title>\n{link}')
    return path


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
