"""The `imagereward` command. Nothing heavy is imported until a command runs, so --help is instant."""

import sys
import warnings

from imagereward.cli import scoring, serving, tables, training
from imagereward.cli.app import app
from imagereward.cli.output import guarded_stdout

__all__ = ["app", "main", "scoring", "serving", "tables", "training"]

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended


def main() -> None:
    """The console entry point: an error becomes one message on stderr, `imagereward: …`, and an exit code.

    1: failed, 2: wrong command line, 3: score-table finished but some rows have errors, 130: Ctrl-C.
    """
    from imagereward.errors import ImageRewardError

    # One line for a user, instead of the place in the code that a developer would want.
    warnings.showwarning = lambda message, *_: print(f"imagereward: warning: {message}", file=sys.stderr)
    try:
        with guarded_stdout():
            app()
    except (ImageRewardError, OSError) as error:
        print(f"imagereward: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_interrupted())
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            _interrupted()
        raise


def _interrupted() -> int:
    print("imagereward: interrupted", file=sys.stderr)
    return INTERRUPTED
