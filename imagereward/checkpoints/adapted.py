"""Loading of a scorer with an adapter: names like "ImageReward-v1.0+my-taste", directories and hub ids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagereward.adapters.files import CONFIG_FILE, WEIGHTS_FILE, read_adapter
from imagereward.checkpoints import hub
from imagereward.checkpoints.judges import HUB_ID
from imagereward.checkpoints.registry import REGISTRY
from imagereward.checkpoints.state_dicts import WEIGHT_SUFFIXES
from imagereward.errors import CheckpointError, DownloadError, InputError
from imagereward.lookup import is_reference
from imagereward.models.judge_names import SCHEMES, is_judge
from imagereward.scoring.scorer import Scorer


def with_adapter(name: str | os.PathLike) -> tuple[str | os.PathLike, str | None]:
    """(scorer, adapter) of a name "SCORER+ADAPTER"; (name, None) of others, and of paths that exist.

    Paths may hold a "+" too, so a "+" divides the name only if `load` takes the part before it (which may be
    SCORER+ADAPTER itself). Among several such "+", the last one before an existing directory divides; without
    one, the last.
    """
    if not isinstance(name, str) or "+" not in name or _exists(name):
        return name, None
    splits = [(name[:at], name[at + 1 :]) for at in range(len(name) - 1, 0, -1) if name[at] == "+"]
    fit = [(scorer, adapter) for scorer, adapter in splits if _may_be_adapter(adapter) and _is_scorer(scorer)]
    return next((each for each in fit if _is_directory(each[1])), next(iter(fit), (name, None)))


def _may_be_adapter(name: str) -> bool:
    return bool(name) and not name.startswith(" ") and not name.endswith(WEIGHT_SUFFIXES)


def _is_scorer(name: str) -> bool:
    if name in REGISTRY or _exists(name) or HUB_ID.fullmatch(name) or is_judge(name) or is_reference(name):
        return True
    return _is_directory(with_adapter(name)[1] or "")


def _exists(name: str) -> bool:
    """Whether a name is a path that exists, or a judge's "vqa:PATH" of one."""
    scheme, _, path = name.partition(":")
    return any(
        os.path.exists(os.path.expanduser(each)) for each in (name, path if scheme in SCHEMES else name)
    )


def _is_directory(name: str) -> bool:
    return os.path.isdir(os.path.expanduser(name))


def adapter_directory(adapter: str | os.PathLike, local_files_only: bool = False) -> Path:
    """The directory of an adapter that is given as one, or as a hub id; CheckpointError if there is none."""
    label = os.fspath(adapter)
    path = Path(label).expanduser()
    if path.is_dir():
        return path
    if label.count("/") != 1 or label.startswith((".", "~", "/")):
        raise CheckpointError(
            f"the adapter {label} does not exist; expected a directory that its save_pretrained wrote, or a "
            "hub id owner/name"
        )
    try:
        files = [
            hub.fetch_from_hub(label, name, None, local_files_only) for name in (CONFIG_FILE, WEIGHTS_FILE)
        ]
    except DownloadError as error:
        raise DownloadError(
            f"there is no directory {label} here, and as a hub id it gives no adapter: {error}"
        ) from error
    return files[0].parent


def put_on(scorer: Any, adapter: str | os.PathLike, local_files_only: bool = False) -> Scorer:
    """The scorer with the adapter on it, named "SCORER+ADAPTER" by its directory's or repository's name."""
    if not isinstance(scorer, Scorer):
        raise InputError(
            f"adapter={os.fspath(adapter)!r}: {scorer.name} is no Scorer, whose modules could change"
        )
    directory = adapter_directory(adapter, local_files_only)
    added = scorer.add_adapter(directory)
    added.label = f"+{Path(os.fspath(adapter)).expanduser().resolve().name}"
    scorer.name += added.label
    return scorer


def with_adapters(
    models: Sequence[str], adapters: Sequence[str | os.PathLike], local_files_only: bool = False
) -> list[str]:
    """The names of the models, "+ADAPTER" behind each that an adapter belongs to.

    An adapter belongs to the only model, or else to the one that its file names as its base. Raises
    InputError for an adapter of none of them, and for two of one model.
    """
    names = list(models)
    for adapter in [os.fspath(each) for each in adapters]:
        at = 0
        if len(models) > 1:
            base = read_adapter(adapter_directory(adapter, local_files_only))[0].base
            bases = [Path(model).name if os.path.exists(model) else model for model in models]
            if base not in bases:
                raise InputError(
                    f"the adapter {adapter} is for {base!r}, which is not among {', '.join(models)}"
                )
            at = bases.index(base)
        if names[at] != models[at]:
            first = names[at].removeprefix(f"{models[at]}+")
            raise InputError(
                f"two adapters for {models[at]}: {first} and {adapter}; expected one for each model: put "
                f"both on by name, --model {models[at]}+{first}+{adapter}"
            )
        names[at] = f"{models[at]}+{adapter}"
    return names
