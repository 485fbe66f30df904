"""save and push: write a scorer's weights and config to a directory, or to the hub."""

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
    """Write `model.safetensors` and `config.json` to `directory`; returns its path.

    Each file is written under another name and renamed, so that an interrupted save leaves the previous file
    intact. Raises OutputError if a file cannot be written.
    """
    directory = Path(directory).expanduser()
    weights = {}
    seen = set()
    for name, value in scorer.state_dict().items():
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
    return json.dumps({**config, "scorer": scorer.config.to_dict()}, indent=2) + "\n"


def push(scorer, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload the files of `save` to the hub repository `repo_id`, which is created if missing; its URL."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory:
        scorer.save_pretrained(directory)  # before the repository, so that an error leaves none
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message=message)
    return str(url)
