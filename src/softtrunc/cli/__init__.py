"""The command line: one file per verb, each thin. Heavy imports wait until a verb runs."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.exceptions import TyperException

from softtrunc.cli.anatomy import anatomy
from softtrunc.cli.data import data
from softtrunc.cli.demo import demo
from softtrunc.cli.edit import edit
from softtrunc.cli.evaluate import evaluate
from softtrunc.cli.export import export
from softtrunc.cli.import_ import import_
from softtrunc.cli.recipes import recipes
from softtrunc.cli.report import report
from softtrunc.cli.sample import sample
from softtrunc.cli.study import study
from softtrunc.cli.train import train

__all__ = ["main"]

app = typer.Typer(
    name="softtrunc",
    help="Train score-based diffusion models with Soft Truncation, and measure them in density "
    "(bits/dim) and in samples.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(train)
app.command()(sample)
app.command()(evaluate)
app.command()(anatomy)
app.command()(report)
app.command()(study)
app.command("import")(import_)
app.command()(export)
app.add_typer(recipes, name="recipes")
app.add_typer(data, name="data")
app.add_typer(edit, name="edit")


def _version(wanted: bool) -> bool:
    if wanted:
        from softtrunc import __version__

        typer.echo(__version__)
        raise typer.Exit
    return wanted


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (on the process's own arguments unless given); the exit code.

    0: done. 1: the work failed. 2: a mistake in what was asked. Both are told in one line. 130 and
    143: stopped by Ctrl-C or SIGTERM. 141: nobody reads the output any more.
    """
    _forgive_encodings()
    try:
        code = int(app(arguments, standalone_mode=False) or 0)
        sys.stdout.flush()
        return code
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a group without a verb: its help
            print(message, file=sys.stderr)
            return 2
        return _tell(message, 2)
    except (KeyboardInterrupt, typer.Abort):
        print("softtrunc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence()
        return 141
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    """Tell what ended the work, and whose fault it is."""
    from softtrunc.feedback.errors import RunFailedError, UserError

    if isinstance(error, UserError):
        return _tell(str(error), 2)
    if isinstance(error, RunFailedError | FloatingPointError):
        return _tell(str(error), 1)
    if isinstance(error, OSError):  # a full disk, a folder that vanished, a file out of reach
        place = f"{error.filename}: " if error.filename else ""
        _silence()
        return _tell(f"{place}{error.strerror or error}: nothing half-written is left", 1)
    with tempfile.NamedTemporaryFile(
        "w", prefix="softtrunc-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.writelines(traceback.format_exception(error))
    what = f"{type(error).__name__}: {error}"
    return _tell(f"unforeseen {what[:150]}: please report it with {file.name}", 1)


def _tell(message: str, code: int) -> int:
    print(f"softtrunc: {' '.join(message.split())}", file=sys.stderr)
    return code


def _forgive_encodings() -> None:
    """Characters that the terminal or the file cannot hold are written as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever called
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    """Whatever is still in the buffer of stdout goes nowhere: its reader or its disk is gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
