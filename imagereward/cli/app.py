"""The Typer app of the `imagereward` command; the other files of this folder add its subcommands."""

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from imagereward.version import __version__


class Command(TyperCommand):
    """A command that refuses a repeated option that takes one value; typer would silently use the last."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        """Like typer's. Raises BadParameter for a repeated option."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            for option, count in Counter(order).items():
                if isinstance(option, TyperOption) and count > 1 and not (option.multiple or option.is_flag):
                    message = f"given {count} times; `{ctx.command_path}` takes one"
                    if option.name == "model":
                        message += " (`imagereward score` and `score-table` take several)"
                    raise typer.BadParameter(message, ctx=ctx, param=option)
        return super().parse_args(ctx, args)


class App(typer.Typer):
    """A Typer whose commands are `Command`s, with examples at the end of their help."""

    def command(self, name: str | None = None, *, examples: str = "", **options: Any) -> Callable:  # type: ignore[override]
        """Like typer's; `examples` are command lines, separated by line breaks."""
        lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
        epilog = f"\b\nExamples:\n{lines}" if lines else None  # \b: lines stay lines
        return super().command(name, **{"cls": Command, "epilog": epilog, **options})


app = App(
    help="Score, rank and compare generated images with reward models.",
    epilog="`imagereward COMMAND --help` has the options of a command, their defaults, and examples.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help answers twice as fast
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
