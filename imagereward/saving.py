"""A scorer on disk: safetensors, and a config that says how its scores are defined."""

import json
import os
import tempfile
from pathlib import Path

import safetensors
import safetensors.torch

from imagereward.errors import OutputError
from imagereward.version import __version__

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def save(scorer, directory: str | os.PathLike) -> Path:
    """Write both files; each is replaced in one step, so an interrupted save leaves the old one whole.

    Raises OutputError for a place that cannot be written.
    """
    weights = {}
    seen = set()
    for name, value in scorer.state_dict().items():
        place = value.untyped_storage().data_ptr()  # safetensors refuses tensors that share memory
        weights[name] = value.clone() if place in seen else value.contiguous()
        seen.add(place)
    directory = Path(directory).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as temporary:
            safetensors.torch.save_file(weights, Path(temporary, WEIGHTS_FILE), {"format": "pt"})
            Path(temporary, CONFIG_FILE).write_text(json.dumps(described(scorer), indent=2) + "\n")
            for name in (WEIGHTS_FILE, CONFIG_FILE):
                os.replace(Path(temporary, name), directory / name)
    except (OSError, safetensors.SafetensorError) as error:  # safetensors' own error for a full disk
        raise OutputError(f"the scorer cannot be saved in {directory}: {error}") from error
    return directory


def described(scorer) -> dict:
    """What `config.json` holds: how the scorer's numbers are defined."""
    config = {"library": "imagereward", "version": __version__, "name": scorer.name}
    return {**config, "scorer": scorer.config.to_dict()}


def push(scorer, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload what `save` writes to a hub repository, made if need be; its URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory:
        scorer.save_pretrained(directory)  # first: what cannot be saved leaves no empty repository
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message)
    return str(url)
