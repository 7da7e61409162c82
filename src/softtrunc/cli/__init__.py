"""The command line: one file per verb, each thin. Heavy imports wait until a verb runs."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
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
from softtrunc.cli.options import Command
from softtrunc.cli.recipes import recipes
from softtrunc.cli.report import report
from softtrunc.cli.sample import sample
from softtrunc.cli.study import study
from softtrunc.cli.train import train
from softtrunc.feedback.text import printable, shortened

__all__ = ["main"]

_BROKEN_PIPE = 141

app = typer.Typer(
    name="softtrunc",
    help="Train score-based diffusion models with Soft Truncation, and measure them in density "
    "(bits/dim) and in samples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command(cls=Command)(train)
app.command(cls=Command)(sample)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(anatomy)
app.command()(report)
app.command()(study)
app.command("import")(import_)
app.command(cls=Command)(export)
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
    _any_encoding()
    code = _run(arguments)
    try:
        sys.stdout.flush()  # what cannot be written is to be told, not found out at exit
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            code = code or _BROKEN_PIPE
        elif not code:
            _tell(f"standard output: {error.strerror or error}")
            code = 1
        _forget_output()
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a group without a verb: its help
            print(message, file=sys.stderr)
        else:
            _tell(message)
        return 2
    except (KeyboardInterrupt, typer.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes the end of a file for Ctrl-D
            return _tell_failure(error.__cause__)
        _tell("interrupted")
        return 130
    except SystemExit as stop:
        # Whoever read the output has seen enough: typer and rich exit with code 1 then.
        if isinstance(stop.__context__, BrokenPipeError):
            return _BROKEN_PIPE
        raise
    except Exception as error:
        return _tell_failure(error)


def _tell_failure(error: Exception) -> int:
    """One line for what ended a command; the exit code."""
    from softtrunc.feedback.errors import RunFailedError, UserError, is_full_memory
    from softtrunc.feedback.files import complaint, is_refusal

    if isinstance(error, UserError):
        _tell(str(error))
        return 2
    if isinstance(error, OSError) and error.strerror:
        _tell(complaint(error))
        return 2 if is_refusal(error) else 1
    # A FloatingPointError is what solvers say of a model whose values are not finite.
    if isinstance(error, RunFailedError | FloatingPointError):
        _tell(str(error))
        return 1
    if is_full_memory(error):
        _tell(
            "memory is full: take smaller batches (training.micro_batch_size, --batch-size, "
            "evaluation.batch_size) or a smaller network"
        )
        return 1
    text = str(error).strip().partition("\n")[0] or "no more is known"
    _tell(f"unforeseen {type(error).__name__}: {text[:100]} (traceback: {_saved(error)})")
    return 1


def _saved(error: Exception) -> str:
    """Where the traceback of an error lies."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="softtrunc-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.writelines(traceback.format_exception(error))
    except OSError as refused:
        return f"cannot be saved: {refused.strerror}"
    return file.name


def _tell(message: str) -> None:
    """One line on standard error, short enough to be read; of several processes one speaks."""
    from softtrunc.feedback.launched import is_first_to_tell

    if not is_first_to_tell():
        return
    with suppress(OSError):
        print(f"softtrunc: {shortened(printable(message))}", file=sys.stderr)


def _any_encoding() -> None:
    """Let both outputs take any text: a closed one swallows it, a narrow encoding escapes it."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            # It lives as long as the process. On the free descriptor it keeps files off it.
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Send what is left to be written nowhere: the interpreter's last flush would fail again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
