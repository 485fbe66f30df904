"""`check_main_guard`: detects training scripts without `if __name__ == "__main__":` in spawned processes."""

import inspect

from imagereward.errors import ImageRewardError

GUARD_HINT = (
    "Where processes are spawned (macOS, Windows, Python 3.14), a script must start its training under "
    '`if __name__ == "__main__":`.'
)


def check_main_guard() -> None:
    """Raise ImageRewardError if a spawned process runs the main script again and reaches a training.

    Without this check the process would report that its parent's output directory is in use.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # A spawned process first runs the parent's script as the module __mp_main__.
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise ImageRewardError(
                f"{frame.f_code.co_filename}, line {frame.f_lineno}, starts a training again, in a process "
                f"that was spawned to read its images. {GUARD_HINT}"
            )
        frame = frame.f_back
