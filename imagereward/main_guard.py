"""Scripts that train without `if __name__ == "__main__":`, which spawned processes run again from the top."""

import inspect

from imagereward.errors import ImageRewardError

GUARD_HINT = (
    "Where processes are spawned (macOS, Windows, Python 3.14), a script must start its training under "
    '`if __name__ == "__main__":`.'
)


def check_main_guard() -> None:
    """Raises ImageRewardError where a spawned process runs the main script again and has come to a training.

    Without this it would find its parent's output directory, and say that another run is there.
    """
    frame = inspect.currentframe()
    while frame is not None:
        # multiprocessing runs the script of the parent under this name, before the process does its work.
        if frame.f_globals.get("__name__") == "__mp_main__" and frame.f_code.co_name == "<module>":
            raise ImageRewardError(
                f"{frame.f_code.co_filename}, line {frame.f_lineno}, starts a training again, in a process "
                f"that was spawned to read its images. {GUARD_HINT}"
            )
        frame = frame.f_back
