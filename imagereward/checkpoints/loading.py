"""load: loads a scorer by a name, a file, a directory, a hub id, or "module:attribute"."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from imagereward.checkpoints import hub
from imagereward.checkpoints.adapted import put_on, with_adapter
from imagereward.checkpoints.assembling import assemble, resolve_device
from imagereward.checkpoints.judges import HUB_ID, judge_on_hub, load_judge
from imagereward.checkpoints.own import load_own
from imagereward.checkpoints.registry import REGISTRY, File
from imagereward.checkpoints.state_dicts import WEIGHT_SUFFIXES, read_state_dict
from imagereward.config import ScorerConfig, read_json, whole_number
from imagereward.errors import CheckpointError, DownloadError, InputError, did_you_mean, listing
from imagereward.lookup import is_reference
from imagereward.models.judge_names import JUDGES, is_judge
from imagereward.models.med_config import read_med_config, with_med_config
from imagereward.precision import on_cpu, resolve_dtype
from imagereward.scoring.saving import CONFIG_FILE, WEIGHTS_FILE
from imagereward.scoring.scorer import Scorer


def load(
    name: str | os.PathLike = "ImageReward-v1.0",
    device: str | torch.device | None = None,
    download_root: str | os.PathLike | None = None,
    med_config: str | os.PathLike | None = None,
    *,
    kind: str | None = None,
    dtype: torch.dtype | str | None = None,
    max_length: int | None = None,
    compile: bool = False,
    local_files_only: bool = False,
    apply_exif_rotation: bool | None = None,
    adapter: str | os.PathLike | None = None,
    **judge: Any,
) -> Scorer:
    """Load a scorer, in evaluation mode and with frozen weights.

    name              a name from `available_models()` or `available_scores()`; a checkpoint file
                      (.pt, .pth, .safetensors) in a released format; a directory written by
                      `save_pretrained`; a hub id `owner/name` of such a directory; "module:attribute",
                      a scorer of your own: a PairScorer, a function that makes one, or a function of
                      (pixels, prompts); or "vqa:MODEL" or "judge:MODEL", a vision-language model that is
                      asked, by its hub id or directory
    device            default: the first CUDA GPU if there is one, else the CPU; "mps" is Apple's GPU
    download_root     where released files are looked for and put; default: the original's
                      ~/.cache/ImageReward, then the hub cache. The models of judges are in the hub cache, or
                      else in such a cache here
    med_config        a JSON file with the text encoder's shape, as the original takes it
    kind              for a checkpoint file: the registry name whose definition of the score to use,
                      when the keys do not tell (`"HPSv2.1"`)
    dtype             float32 (default), float16, bfloat16 or float64, as torch dtype or string
    max_length        prompt tokens to read: up to 512 for BLIP kinds (released: 35), 77 for CLIP kinds; of
                      judges 2048 by default
    compile           put the towers through torch.compile: slow first call, faster ones after
    local_files_only  never touch the network
    apply_exif_rotation   turn photos as their EXIF orientation says before they are scored; default: as the
                      scorer was saved, which for released ones is no, as in the originals
    adapter           an adapter to put on it: a directory, or a hub id `owner/name`. The name "NAME+ADAPTER"
                      means the same, also where only names of scorers are taken
    judge             for a vision-language model: template, readout and other fields of
                      `imagereward.models.vlm.asking.settings.JudgeConfig`; device_map, quantize, attention

    Raises CheckpointError (unknown name, wrong or damaged file; its subclass DownloadError when a
    file cannot be had), DeviceError, InputError.
    """
    if adapter is None:
        name, adapter = with_adapter(name)
    if adapter is not None:
        if compile:
            raise InputError(f"compile=True and adapter={os.fspath(adapter)!r}: expected one of the two")
        more: dict[str, Any] = {"kind": kind, "dtype": dtype, "max_length": max_length, **judge}
        more |= {"local_files_only": local_files_only, "apply_exif_rotation": apply_exif_rotation}
        return put_on(load(name, device, download_root, med_config, **more), adapter, local_files_only)
    if (asked := judge_source(label := os.fspath(name), local_files_only)) is not None:
        return load_judge(
            asked,
            device,
            dtype,
            label=label,
            refused={"kind": kind, "med_config": med_config},
            max_length=max_length,
            compile=compile,
            download_root=download_root,
            local_files_only=local_files_only,
            apply_exif_rotation=apply_exif_rotation,
            options=judge,
        )
    if judge:
        raise InputError(
            f"{label!r} takes no {', '.join(judge)}: it is no vision-language model that is asked"
        )
    if is_reference(label) and not _local(label)[1]:
        options: dict[str, Any] = {
            "device": device,
            "download_root": download_root,
            "med_config": med_config,
            "kind": kind,
            "dtype": dtype,
            "max_length": max_length,
            "compile": compile or None,
            "local_files_only": local_files_only or None,
            "apply_exif_rotation": apply_exif_rotation,
        }
        return load_own(label, {option: value for option, value in options.items() if value is not None})
    device, dtype = resolve_device(device), resolve_dtype(dtype)
    if max_length is not None:
        max_length = whole_number("max_length", max_length, 2)
    med = None if med_config is None else read_med_config(Path(med_config))
    with on_cpu():
        label, config, sources = _located(label, kind, download_root, local_files_only)
    if med is not None:
        config = with_med_config(config, med)
    if max_length is not None:
        config = replace(config, max_length=max_length)
    if apply_exif_rotation is not None:
        preprocess = replace(config.preprocess, apply_exif_rotation=apply_exif_rotation)
        config = replace(config, preprocess=preprocess)
    with on_cpu():
        scorer = assemble(config, _merged(sources), device, dtype, " + ".join(str(p) for _, p in sources))
    scorer.name = label
    scorer.files = {file.prefix: path.resolve() for file, path in sources}
    if compile:
        scorer.compile_towers()
    return scorer


def judge_source(label: str, local_files_only: bool = False) -> str | None:
    """What `load_judge` opens for a name: the name itself, or the directory of a judge on the hub; else None.

    Raises DownloadError for a judge on the hub of which a file cannot be had.
    """
    if is_judge(label):
        return label
    path, exists = _local(label)
    if exists or label in REGISTRY or path.suffix in WEIGHT_SUFFIXES:
        return None
    return judge_on_hub(label, local_files_only)


def load_score(
    name: str | os.PathLike = "CLIP",
    device: str | torch.device | None = None,
    download_root: str | os.PathLike | None = None,
    **options,
) -> Scorer:
    """`load` with the default, and the three positional arguments, of the original's `load_score`."""
    return load(name, device, download_root, **options)


def _located(label: str, kind: str | None, download_root, local_files_only: bool):
    """(name of the scorer, config, [(file, local path)]) for the `name` and `kind` given to `load`."""
    where = (download_root, local_files_only)
    path, exists = _local(label)
    if kind is not None and not (exists and path.is_file()):
        raise InputError(f"kind={kind!r} is for checkpoint files; {label!r} is none")
    if label in REGISTRY:
        config, sources = REGISTRY[label].config, _fetched(label, where)
    elif exists and path.is_dir():
        config, sources = _read_config(path / CONFIG_FILE), [(File(WEIGHTS_FILE), path / WEIGHTS_FILE)]
        label = path.resolve().name
    elif exists and kind is None and _is_saved(path):
        config, sources = _read_config(path.with_name(CONFIG_FILE)), [(File(WEIGHTS_FILE), path)]
        label = path.resolve().parent.name
    elif exists:
        config, sources = _released_format(path, kind, where)
        label = path.name
    elif HUB_ID.fullmatch(label) and path.suffix not in WEIGHT_SUFFIXES:
        try:
            there, weights = (
                hub.fetch_from_hub(label, part, None, local_files_only)
                for part in (CONFIG_FILE, WEIGHTS_FILE)
            )
        except DownloadError as error:
            reason = f"there is no directory {label} here, and as a hub id it gives nothing: {error}"
            raise DownloadError(reason) from error
        config, sources = _read_config(there), [(File(WEIGHTS_FILE), weights)]
    elif path.suffix in WEIGHT_SUFFIXES or label.startswith(("~", ".")) or re.search(r"[/\\]", label):
        expected = (
            "expected a checkpoint file, a directory written by save_pretrained, or a hub id owner/name"
        )
        raise CheckpointError(f"the path {label} does not exist; {expected}")
    else:
        hint = " ".join(filter(None, [did_you_mean(label, [*REGISTRY, *JUDGES], 0.5), "known:"]))
        raise CheckpointError(
            f"{label!r} is no known scorer, file, directory or hub id; {hint} {', '.join(REGISTRY)}"
        )
    return label, config, sources


def _is_saved(path: Path) -> bool:
    """Whether a file of weights lies where `save_pretrained` wrote it, beside the scorer's config."""
    beside = path.with_name(CONFIG_FILE)
    if path.name != WEIGHTS_FILE or not beside.is_file():
        return False
    try:
        return "scorer" in json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _fetched(name: str, where) -> list[tuple[File, Path]]:
    return [(file, hub.fetch(file, *where)) for file in REGISTRY[name].files]


def _merged(sources: list[tuple[File, Path]]) -> dict[str, torch.Tensor]:
    merged = {}
    for file, path in sources:
        state = read_state_dict(path)
        if file.transformers_names and any(name.startswith("vision_model.") for name in state):
            from imagereward.models.clip import from_transformers

            state = from_transformers(state)
        prefixed = any(name.startswith(file.prefix) for name in state)
        for name, value in state.items():
            if not name.startswith(file.ignored or ("\0",)):
                merged[name if prefixed else file.prefix + name] = value
    return merged


def _released_format(path: Path, kind: str | None, where) -> tuple[ScorerConfig, list]:
    """(config, [(file, local path)]) of a checkpoint file in a released format.

    For the head of Aesthetic alone, the files of CLIP are added.
    """
    kind = kind or _kind_of(path)
    if kind not in REGISTRY:
        raise InputError(f"kind={kind!r}: expected one of {', '.join(REGISTRY)}")
    *others, last = REGISTRY[kind].files
    if others and any(name.startswith(others[0].prefix) for name in read_state_dict(path)):
        return REGISTRY[kind].config, [(File(path.name), path)]
    return REGISTRY[kind].config, [*((file, hub.fetch(file, *where)) for file in others), (last, path)]


def _kind_of(path: Path) -> str:
    state = read_state_dict(path)
    for key, kind in (
        ("blip.vision_proj.weight", "ImageReward-v1.0" if "mlp.layers.0.weight" in state else "BLIP"),
        ("vision_proj.weight", "BLIP"),
        ("clip_model.visual.proj", "Aesthetic" if "mlp.layers.0.weight" in state else "CLIP"),
        ("vision_model.post_layernorm.weight", "PickScore-v1"),
        ("layers.7.weight", "Aesthetic"),
    ):
        if key in state:
            return kind
    if "visual.proj" not in state:
        raise CheckpointError(
            f"{path} is no checkpoint of a known kind; its keys begin with {listing(state, 4)}. "
            f"Say kind=, one of {', '.join(REGISTRY)}"
        )
    if state["visual.proj"].shape[:1] == (1024,):
        return "CLIP"
    raise CheckpointError(
        f"{path} is a CLIP, but of which score its keys do not tell: say kind='HPSv2.0' or 'HPSv2.1'"
    )


def _local(name: str) -> tuple[Path, bool]:
    try:
        path = Path(name).expanduser()
        return path, bool(name) and path.exists()
    except (OSError, RuntimeError, ValueError):  # no path: too long, unknown home, or a null byte
        return Path(name), False


def _read_config(path: Path) -> ScorerConfig:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: expected a directory written by save_pretrained")
    try:
        values = read_json(path)
        if "adapter" in values:
            base = values["adapter"].get("base")
            raise CheckpointError(
                f"{path.parent} is an adapter: load({base!r}, adapter={str(path.parent)!r})"
            )
        return ScorerConfig.from_dict(values["scorer"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} does not describe a scorer: {error}") from error
