"""Helper processes: ending them with their parent, and messages for when one cannot start or dies."""

import multiprocessing
import os
import signal
import threading

from imagereward.errors import ImageRewardError

# Seconds between two checks of whether the parent process still runs.
LOOK = 0.5

NO_GUARD = (
    "put the call, and everything else the script does, under `if __name__ == '__main__':`, because helper "
    "processes that are started by {method!r} run the script again from its top"
)


def end_with_parent() -> None:
    """Start a thread in a helper process that ends the process when its parent ends, even by SIGKILL.

    The thread waits for the parent's end of a pipe to close. Other forked processes may hold a copy of that
    end, so the thread compares the parent's process id as well.
    """
    parent = multiprocessing.parent_process()
    parent_id = os.getppid()

    def watch() -> None:
        while parent is not None:
            parent.join(LOOK)
            if not parent.is_alive() or os.getppid() != parent_id:
                os._exit(1)

    threading.Thread(target=watch, name="imagereward-parent", daemon=True).start()


def refuse_nested_start() -> None:
    """Raise ImageRewardError in a helper process that is importing the script that started it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ImageRewardError(
            "score_table was called again by a helper process that imports this script: " + guard_hint()
        )


def guard_hint(method: str | None = None) -> str:
    """Advice to guard a script with `if __name__ == "__main__":`.

    method   multiprocessing's start method; default: the current one
    """
    return NO_GUARD.format(method=method or multiprocessing.get_start_method())


def imports_the_script() -> bool:
    """Whether helper processes import the script again (every start method but fork)."""
    return multiprocessing.get_start_method() != "fork"


def ending(exit_code: int | None) -> str:
    """How a process ended, in words; None stands for a process that does not answer."""
    if exit_code is None:
        return "does not answer"
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = "unknown"
    words = f"was ended by signal {-exit_code} ({name})"
    if name == "SIGKILL":
        words += ", as Linux ends processes when memory is short"
    return words
