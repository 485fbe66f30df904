"""The shape of a BLIP text encoder in the original's format, med_config.json: reading it into a config."""

from dataclasses import asdict, replace
from pathlib import Path

from imagereward.config import ScorerConfig, read_json
from imagereward.errors import InputError


def read_med_config(path: Path) -> dict:
    """The keys and values of the original's med_config.json, the shape of its text encoder.

    Raises InputError for a file that cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        values = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"med_config {path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"med_config {path} holds a {type(values).__name__}; expected an object")
    return values


def with_med_config(config: ScorerConfig, values: dict) -> ScorerConfig:
    """`config` with the text encoder of these values; InputError for a scorer without a BLIP."""
    if config.kind not in ("ImageReward", "BLIP"):
        raise InputError(f"med_config= describes a BLIP text encoder; this scorer is a {config.kind}")
    names = {
        "vocab_size": "vocab_size",
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "mlp_width",
        "max_position_embeddings": "max_positions",
        "hidden_dropout_prob": "dropout",
        "layer_norm_eps": "eps",
    }
    from imagereward.models.blip import BLIPShape

    shape = asdict(BLIPShape.from_dict(config.architecture))
    shape["text"].update({ours: values[theirs] for theirs, ours in names.items() if theirs in values})
    return replace(config, architecture=shape)
