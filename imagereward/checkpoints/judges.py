"""load_judge: loads a vision-language model that is asked about images; judge_on_hub: from its hub id."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from imagereward.checkpoints import hub
from imagereward.checkpoints.assembling import resolve_device
from imagereward.config import read_json, whole_number
from imagereward.errors import DownloadError, InputError
from imagereward.models.judge_names import JUDGE_FILE
from imagereward.precision import on_cpu, resolve_dtype
from imagereward.scoring.saving import CONFIG_FILE
from imagereward.scoring.scorer import Scorer

# "owner/name" in the letters that the hub allows; "./name" and "../name" are paths instead.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def judge_on_hub(label: str, local_files_only: bool) -> str | None:
    """The directory of a judge that `push_to_hub` uploaded, by its hub id; None if the id is of no judge.

    Raises DownloadError if it is one and a file of it cannot be had.
    """
    if not HUB_ID.fullmatch(label):
        return None
    try:
        if "scorer" in read_json(hub.fetch_from_hub(label, CONFIG_FILE, None, local_files_only)):
            return None
        hub.fetch_from_hub(label, JUDGE_FILE, None, local_files_only)
    except (DownloadError, OSError, ValueError):  # `load` says what is wrong with such an id
        return None
    return str(hub.fetch_repository(label, local_files_only))


def load_judge(
    source: str,
    device: Any,
    dtype: Any,
    *,
    label: str,
    refused: Mapping[str, Any],
    max_length: int | None,
    compile: bool,
    download_root: Any,
    local_files_only: bool,
    apply_exif_rotation: bool | None,
    options: Mapping[str, Any],
) -> Scorer:
    """The judge, with the arguments of `load`.

    source   what `open_judge` takes: a name, or a directory
    label    the name that was given to `load`
    refused  arguments of `load` that judges do not take, by name; InputError for one that is not None
    options  fields of `JudgeConfig`, and device_map, quantize, attention
    """
    if taken := [name for name, value in refused.items() if value is not None]:
        raise InputError(f"{label!r} is a vision-language model: it takes no {', '.join(taken)}")
    from imagereward.models.vlm.opening import open_judge

    own: dict[str, Any] = dict(options)
    if max_length is not None:
        own["max_length"] = whole_number("max_length", max_length, 2)
    if apply_exif_rotation is not None:
        own["apply_exif_rotation"] = bool(apply_exif_rotation)
    with on_cpu():
        opened = open_judge(
            source,
            resolve_device(device),
            resolve_dtype(dtype),
            download_root=None if download_root is None else Path(download_root),
            local_files_only=local_files_only,
            options=own,
        )
    if source != label:
        opened.name = label
    if compile:
        (opened if isinstance(opened, Scorer) else opened.judge).compile_towers()
    return cast(Scorer, opened)
