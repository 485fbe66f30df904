"""One file an objective; here, what recipes call those that train generators."""

from typing import Any

from imagereward.errors import InputError
from imagereward.tuning.named import named

# A recipe's objective -> its config, whose `make` builds it. A recipe may also name "module:Config" itself.
OBJECTIVES = {
    "refl": "imagereward.tuning.objectives.refl:ReFLConfig",
    "grpo": "imagereward.tuning.objectives.grpo:GRPOConfig",
    "sft": "imagereward.tuning.objectives.sft:SFTConfig",
}


def config_class(objective: str) -> Any:
    """The config of a recipe's objective. Raises InputError for one that is not there."""
    try:
        return named(OBJECTIVES.get(objective, objective))
    except (ModuleNotFoundError, AttributeError) as error:
        if objective in OBJECTIVES:
            raise  # a library of the extra is missing
        raise InputError(f"objective={objective!r}: {error}; known: {', '.join(OBJECTIVES)}") from error
