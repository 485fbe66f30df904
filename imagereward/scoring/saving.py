"""A scorer on disk: safetensors, and a config that says how its scores are defined."""

import json
import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch

from imagereward.errors import OutputError
from imagereward.version import __version__
from imagereward.writing import replacing

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(scorer, directory: str | os.PathLike) -> Path:
    """Write both files; each is replaced in one step, so an interrupted save leaves the old one whole.

    Raises OutputError for a place that cannot be written.
    """
    directory = Path(directory).expanduser()
    weights = {}
    seen = set()
    for name, value in scorer.state_dict().items():
        place = value.untyped_storage().data_ptr()  # safetensors refuses tensors that share memory
        weights[name] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    # Both are whole before either takes its name.
    with replacing(directory / CONFIG_FILE) as config, replacing(directory / WEIGHTS_FILE) as file:
        config.write_text(config_text(scorer), encoding="utf-8")
        try:
            safetensors.torch.save_file(weights, file, {"format": "pt"})
        except safetensors.SafetensorError as error:  # a full disk, among others
            raise OutputError(f"{directory / WEIGHTS_FILE} cannot be written: {error}") from error
    return directory


def config_text(scorer) -> str:
    """What `config.json` holds, as JSON: how the scorer's numbers are defined."""
    config = {"library": "imagereward", "version": __version__, "name": scorer.name}
    return json.dumps({**config, "scorer": scorer.config.to_dict()}, indent=2) + "\n"


def push(scorer, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload what `save` writes to a hub repository, made if need be; its URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory:
        scorer.save_pretrained(directory)  # first: what cannot be saved leaves no empty repository
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message)
    return str(url)
