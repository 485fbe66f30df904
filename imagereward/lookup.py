"""The one look-up of "module:attribute": scorers, families, objectives and rewards of one's own."""

import os
import re
import sys
from importlib import import_module
from typing import Any

from imagereward.errors import InputError

REFERENCE = re.compile(r"[^/\\\s]*:[^/\\\s]*")
FORM = 'expected "module:name", a module of the current directory or an installed one'


def is_reference(name: str) -> bool:
    """Whether a name is meant as "module:attribute": a colon, and no slash, backslash or white space."""
    return REFERENCE.fullmatch(name) is not None


def find(name: str, setting: str, others: str = "") -> Any:
    """The attribute that "module:attribute" names. The module may also lie in the current directory.

    setting  what the name is given for, as the error calls it: "family", "objective", "scorer"
    others   what else would have been valid, for the error: "known: refl, grpo"

    Raises InputError naming setting, name and cause if the form is wrong, the module cannot be imported, or
    it has no such attribute.
    """
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        raise _not_found(name, setting, "it names no module and attribute", others)
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # last, so that nothing installed is hidden
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise _not_found(name, setting, str(error), others) from error


def _not_found(name: str, setting: str, cause: str, others: str) -> InputError:
    return InputError(f"{setting}={name!r}: {cause}; {FORM}{f'; {others}' if others else ''}")
