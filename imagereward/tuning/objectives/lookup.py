"""An objective's name in recipes -> its config class."""

from typing import Any

from imagereward.errors import InputError
from imagereward.lookup import lookup
from imagereward.tuning.config import Config

# A recipe's objective -> its config, whose `make` builds it. A recipe may also name "module:Config" itself.
OBJECTIVES = {
    "refl": "imagereward.tuning.objectives.refl:ReFLConfig",
    "grpo": "imagereward.tuning.objectives.grpo:GRPOConfig",
    "sft": "imagereward.tuning.objectives.sft:SFTConfig",
}


def config_class(objective: str) -> Any:
    """The config of a recipe's objective. Raises InputError for one that is not there."""
    known = f"known: {', '.join(OBJECTIVES)}"
    try:
        found = lookup(OBJECTIVES.get(objective, objective))
    except (ImportError, AttributeError) as error:
        if objective in OBJECTIVES:
            raise  # a library of the extra is missing
        raise InputError(f"objective={objective!r}: {error}; {known}") from error
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise InputError(f"objective={objective!r} is no config of an objective; {known}")
    return found
