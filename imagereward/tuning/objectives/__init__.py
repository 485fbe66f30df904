"""One file an objective (config, loss and minibatches), and the losses and keys that several share."""

from importlib import import_module
from typing import Any

from imagereward.errors import InputError
from imagereward.lookup import find
from imagereward.tuning.config import Config

# An objective's name in recipes -> "module:class" of its config, whose `make` builds the objective. A recipe
# may also give "module:Config" as the objective.
OBJECTIVES = {
    "refl": "imagereward.tuning.objectives.refl:ReFLConfig",
    "grpo": "imagereward.tuning.objectives.grpo:GRPOConfig",
    "sft": "imagereward.tuning.objectives.sft:SFTConfig",
    "sft_online": "imagereward.tuning.objectives.sft_online:OnlineSFTConfig",
    "dpo": "imagereward.tuning.objectives.dpo:DPOConfig",
    "dpo_online": "imagereward.tuning.objectives.dpo:OnlineDPOConfig",
    "nft": "imagereward.tuning.objectives.nft:NFTConfig",
    "awm": "imagereward.tuning.objectives.awm:AWMConfig",
}


def config_class(objective: str) -> Any:
    """The config class of an objective: "refl", "grpo", "sft", or "module:Config".

    Raises InputError for an unknown name, and for a class that is no Config.
    """
    known = f"known: {', '.join(OBJECTIVES)}"
    if objective not in OBJECTIVES and ":" not in objective:
        raise InputError(f"objective={objective!r}: expected a known one or module:name; {known}")
    if objective in OBJECTIVES:
        module, _, name = OBJECTIVES[objective].partition(":")
        return getattr(import_module(module), name)  # an ImportError names the missing extra
    found = find(objective, "objective", known)
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise InputError(f"objective={objective!r} is no config of an objective; {known}")
    return found
