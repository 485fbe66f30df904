"""What is not ours, by the name that recipes call it."""

import os
import sys
from importlib import import_module
from typing import Any


def named(name: str) -> Any:
    """What "module:name" names; modules may also lie in the current directory.

    Raises ImportError or AttributeError for what is not there.
    """
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that nothing installed is hidden
    module, _, thing = name.partition(":")
    return getattr(import_module(module), thing)
