"""The `imagereward` command. Nothing heavy is imported until a command runs, so --help is instant."""

import sys
import warnings

from imagereward.cli import scoring, serving, tables, training
from imagereward.cli.app import app

__all__ = ["app", "main", "scoring", "serving", "tables", "training"]


def main() -> None:
    """The console entry point: errors of this package become one line on stderr and exit code 1."""
    from imagereward.errors import ImageRewardError

    # One line for a user, instead of the place in the code that a developer would want.
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except ImageRewardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
