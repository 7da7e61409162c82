"""The command line: one file per verb, each thin. Heavy imports wait until a verb runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

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

    0: done. 1: the work failed. 2: a mistake in what was asked, told in one line. 130: Ctrl-C.
    """
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # a group without a verb: its help
            print(message, file=sys.stderr)
            return 2
        return _refuse(message)
    except (KeyboardInterrupt, typer.Abort):
        print("softtrunc: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        from softtrunc.feedback.errors import RunFailedError, UserError

        if isinstance(error, UserError):
            return _refuse(str(error))
        if isinstance(error, RunFailedError):
            _refuse(str(error))
            return 1
        raise


def _refuse(message: str) -> int:
    print(f"softtrunc: {' '.join(message.split())}", file=sys.stderr)
    return 2
