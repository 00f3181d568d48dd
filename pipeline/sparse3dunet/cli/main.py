"""Entry point of the command ``sparse3dunet``."""

from __future__ import annotations

import os
import sys

import typer

from sparse3dunet import __version__
from sparse3dunet.cli import annotate, check, densify, label_app, package, plan, predict, run, simulate
from sparse3dunet.errors import TRACEBACK_VARIABLE, config_error, end_in_order, readable

app = typer.Typer(
    help="Dense 3D segmentation from sparsely annotated volumes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(check.check)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(plan.plan)
app.command()(simulate.simulate)
app.command()(predict.predict)
app.command()(package.package)
app.command()(label_app.label_app)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(densify.densify)
app.command()(annotate.annotate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(run.run)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sparse3dunet {__version__}")
        raise typer.Exit()


@app.callback()
def _main(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Dense 3D segmentation from sparsely annotated volumes. Training: python -m monai.bundle run training."""


def main() -> None:
    """Run the command; a DataError, an error in a config or a lack of room ends it with one line and status 1."""
    end_in_order()
    try:
        app()
    except Exception as error:
        message = readable(error) or config_error(error)
        if message is None or os.environ.get(TRACEBACK_VARIABLE):
            raise
        sys.exit(f"error: {message}")
