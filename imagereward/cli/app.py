"""The command itself; what it can do is in the files beside this one."""

from typing import Annotated

import typer

from imagereward.version import __version__

app = typer.Typer(
    help="Score, rank and compare generated images with reward models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it answers twice as fast
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
