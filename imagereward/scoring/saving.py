"""save: writes a scorer's weights and config, with those of its adapters, to a directory."""

import json
import os
from dataclasses import replace
from pathlib import Path

import safetensors
import safetensors.torch

from imagereward.adapters.files import PREFIX, plain_state
from imagereward.errors import OutputError
from imagereward.version import __version__
from imagereward.writing import replacing

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(scorer, directory: str | os.PathLike) -> Path:
    """Write `model.safetensors` and `config.json` to `directory`; returns its path.

    Each file is written under another name and renamed, so that an interrupted save leaves the previous file
    intact. Raises OutputError if a file cannot be written.
    """
    scorer.adapters.check_on()
    directory = Path(directory).expanduser()
    weights = {}
    seen = set()
    for name, value in _state_of(scorer).items():
        place = value.untyped_storage().data_ptr()  # safetensors refuses tensors that share memory
        weights[name] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    # Both files are complete before either is renamed.
    with replacing(directory / CONFIG_FILE) as config, replacing(directory / WEIGHTS_FILE) as file:
        config.write_text(config_text(scorer), encoding="utf-8")
        try:
            safetensors.torch.save_file(weights, file, {"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, among others
            raise OutputError(f"{directory / WEIGHTS_FILE} cannot be written: {error}") from error
    return directory


def config_text(scorer) -> str:
    """The text of `config.json`: the scorer's name and its `ScorerConfig`, as JSON."""
    config = {"library": "imagereward", "version": __version__, "name": scorer.name}
    described = replace(scorer.config, adapters=scorer.adapters.configs)
    return json.dumps({**config, "scorer": described.to_dict()}, indent=2) + "\n"


def _state_of(scorer) -> dict:
    """The scorer's own weights, and those of its adapters as "adapters.NAME.…"."""
    if not len(scorer.adapters):
        return scorer.state_dict()
    added = {
        f"{PREFIX}{adapter.config.name}.{name}": value.detach()
        for adapter in scorer.adapters.all
        for name, value in adapter.weights().items()
    }
    return plain_state(scorer) | added
