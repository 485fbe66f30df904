"""The `imagereward` command, which imports torch only when a subcommand runs, so that --help is fast."""

import sys
import warnings

from imagereward.cli import choosing, evaluating, inpainting, scoring, serving, tables, training
from imagereward.cli.app import app
from imagereward.cli.output import guarded_stdout

__all__ = ["app", "choosing", "evaluating", "inpainting", "main", "scoring", "serving", "tables", "training"]

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended


def main() -> None:
    """The console entry point: prints an error as one message `imagereward: …` on stderr.

    Exit codes: 0 done, 1 failed, 2 wrong command line, 3 score-table finished but some rows have errors,
    130 Ctrl-C.
    """
    from imagereward.errors import ImageRewardError

    # Print a warning as one line, without the line of code that raised it.
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
