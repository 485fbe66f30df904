"""push: uploads what an object saves to a repository of the hub."""

import tempfile
from typing import Any


def push(saved: Any, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload the files of `saved.save_pretrained` to the hub repository `repo_id`; returns its URL.

    The repository is created if it is missing, after the files are written, so that an error leaves none.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory:
        saved.save_pretrained(directory)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        whole = getattr(url, "repo_id", repo_id)  # with the owner, where `repo_id` names none
        api.upload_folder(repo_id=whole, folder_path=directory, commit_message=message)
    return str(url)
