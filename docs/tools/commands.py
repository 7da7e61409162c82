"""The page of all commands, from the command line itself."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.core import TyperGroup

from softtrunc.cli import app


def command_pages() -> str:
    """Markdown: a heading, what it does and a table of options for every verb."""
    root = typer.main.get_command(app)
    context = root.make_context("softtrunc", [], resilient_parsing=True)
    return "\n".join(_section(each) for each in (context, *_leaves(context)))


def _leaves(context: typer.Context) -> Iterator[typer.Context]:
    command = context.command
    if not isinstance(command, TyperGroup):
        yield context
        return
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        yield from _leaves(inner.context_class(inner, parent=context, info_name=name))


def _section(context: typer.Context) -> str:
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    about, _, more = (command.help or "").partition("\n\n")
    rows = [record for p in command.get_params(context) if (record := p.get_help_record(context))]
    table = ["| argument | meaning |", "|---|---|"]
    table += [f"| {_code(left)} | {_cell(right)} |" for left, right in rows]
    return "\n".join(
        [
            f"## {context.command_path}\n",
            f"{about}\n",
            f"```\n{context.command_path} {usage}\n```\n",
            f"{more}\n",
            *table,
            "",
        ]
    )


def _code(text: str) -> str:
    # A bar in code does not end a cell.
    return f"`{' '.join(text.split())}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
