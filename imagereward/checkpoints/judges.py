"""load_judge: loads a vision-language model that is asked about images, by "vqa:MODEL" or "judge:MODEL"."""

from collections.abc import Mapping
from typing import Any, cast

from imagereward.checkpoints.assembling import resolve_device
from imagereward.config import whole_number
from imagereward.errors import InputError
from imagereward.precision import on_cpu, resolve_dtype
from imagereward.scoring.scorer import Scorer


def load_judge(
    label: str,
    device: Any,
    dtype: Any,
    *,
    refused: Mapping[str, Any],
    max_length: int | None,
    compile: bool,
    local_files_only: bool,
    apply_exif_rotation: bool | None,
    options: Mapping[str, Any],
) -> Scorer:
    """The judge, with the arguments of `load`.

    refused  arguments of `load` that judges do not take, by name; InputError for one that is not None
    options  fields of `JudgeConfig`, and device_map, quantize, attention
    """
    if taken := [name for name, value in refused.items() if value is not None]:
        raise InputError(f"{label!r} is a vision-language model: it takes no {', '.join(taken)}")
    from imagereward.models.vlm.opening import open_judge

    length = None if max_length is None else whole_number("max_length", max_length, 2)
    with on_cpu():
        opened = open_judge(
            label,
            resolve_device(device),
            resolve_dtype(dtype),
            max_length=length,
            local_files_only=local_files_only,
            apply_exif_rotation=bool(apply_exif_rotation),
            options=options,
        )
    if compile and isinstance(opened, Scorer):
        opened.compile_towers()
    return cast(Scorer, opened)
