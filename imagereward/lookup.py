"""What is not ours, by the name that recipes call it."""

import os
import sys
from importlib import import_module
from typing import Any


def lookup(name: str) -> Any:
    """What "module:name" names; modules may also lie in the current directory.

    Raises ImportError or AttributeError for what is not there.
    """
    module, _, thing = name.partition(":")
    if not (module and thing):
        raise ImportError("expected module:name")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that nothing installed is hidden
    return getattr(import_module(module), thing)
