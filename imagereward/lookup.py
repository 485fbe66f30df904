"""find: imports a user's own scorer, family, objective or reward, given as "module:attribute"."""

import os
import re
import sys
from importlib import import_module
from typing import Any

from imagereward.errors import InputError

REFERENCE = re.compile(r"[^/\\\s]*:[^/\\\s]*")
FORM = 'expected "module:name", a module of the current directory or an installed one'


def is_reference(name: str) -> bool:
    """Whether a name has the form "module:attribute": a colon, and no slash, backslash or white space."""
    return REFERENCE.fullmatch(name) is not None


def find(name: str, setting: str, others: str = "") -> Any:
    """The attribute of a module, which is installed or lies in the current directory.

    name     "module:attribute"
    setting  the setting that has the name, for the error: "family", "objective", "scorer"
    others   other valid values of the setting, for the error: "known: refl, grpo"

    Raises InputError with setting, name and cause if the form is wrong, the module cannot be imported, or it
    lacks the attribute.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise _not_found(name, setting, "it names no module and attribute", others)
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that installed modules come first
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _not_found(name, setting, str(error), others) from error


def _not_found(name: str, setting: str, cause: str, others: str) -> InputError:
    return InputError(f"{setting}={name!r}: {cause}; {FORM}{f'; {others}' if others else ''}")
