"""open_hpsv3: the model of HPSv3, from its published file of weights (fetch_hpsv3) and the base's config."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from imagereward.errors import CheckpointError, DownloadError, listing
from imagereward.models.unsaved_buffers import make_unsaved_buffers
from imagereward.models.vlm.asking.hpsv3 import TOKEN
from imagereward.models.vlm.asking.settings import HeadConfig
from imagereward.models.vlm.heads import RewardHead

PUBLISHED = ("MizzenAI/HPSv3", "HPSv3.safetensors")  # hub id, file
HEAD = "rm_head."
# Prefixes of names as the file has them, of transformers 4.45 -> as transformers has them since 5.
RENAMED = (("visual.", "model.visual."), ("model.", "model.language_model."))
EMBEDDING = "model.language_model.embed_tokens.weight"


def open_hpsv3(
    transformers: Any,
    base: str,
    weights: Path,
    device: torch.device,
    dtype: torch.dtype,
    where: dict[str, Any],
) -> tuple[Any, Any, RewardHead]:
    """(model, processor, head).

    base     hub id or directory of Qwen2-VL-7B-Instruct, whose config and processor are read, not its weights
    weights  HPSv3.safetensors
    where    options of transformers' `from_pretrained`

    The language model gets the file's number of embeddings, and the processor the token whose hidden state is
    read. Raises CheckpointError listing missing and unexpected weights.
    """
    config = transformers.AutoConfig.from_pretrained(base, **where)
    processor = transformers.AutoProcessor.from_pretrained(base, **where)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    state = {current_name(name): value for name, value in _read(weights).items()}
    if EMBEDDING not in state:
        raise CheckpointError(f"{weights} has no {EMBEDDING} (or model.embed_tokens.weight): it is no HPSv3")
    config.get_text_config().vocab_size = len(state[EMBEDDING])
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config, dtype=dtype)
        head = RewardHead(config.get_text_config().hidden_size, HeadConfig())
    head_state = {
        "layers." + name.removeprefix(HEAD): state.pop(name).float()
        for name in list(state)
        if name.startswith(HEAD)
    }
    if "lm_head.weight" not in state:  # scores need no next tokens
        model.lm_head = nn.Identity()
    for module, found in ((model, state), (head, head_state)):
        _fill(module, found, weights, device, dtype if module is model else torch.float32)
    make_unsaved_buffers(model)
    return model.to(device), processor, head.to(device)


def fetch_hpsv3(root: Path | None, local_files_only: bool) -> Path:
    """The published file of weights: in the directory `root`, in the hub cache, or else downloaded.

    Raises DownloadError if it cannot be had.
    """
    import huggingface_hub

    root = None if root is None else root.expanduser()
    if root is not None and (root / PUBLISHED[1]).is_file():
        return root / PUBLISHED[1]
    cached = huggingface_hub.try_to_load_from_cache(*PUBLISHED)
    if isinstance(cached, str):
        return Path(cached)
    try:
        found = huggingface_hub.hf_hub_download(*PUBLISHED, local_dir=root, local_files_only=local_files_only)
    except Exception as error:  # of requests or httpx, by huggingface_hub's version, without a common base
        reason = (str(error).strip().splitlines() or [""])[0]
        looked = "" if root is None else f", and it is not in {root}"
        raise DownloadError(f"hub {'/'.join(PUBLISHED)}: {type(error).__name__}: {reason}{looked}") from error
    return Path(found)


def current_name(name: str) -> str:
    """The name in today's transformers of a weight of the published file."""
    if name.startswith(("model.visual.", "model.language_model.", HEAD, "lm_head.")):
        return name
    for before, now in RENAMED:
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error


def _fill(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path, device: torch.device, dtype: torch.dtype
) -> None:
    expected = module.state_dict()
    faults = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            name for name, value in expected.items() if name in state and state[name].shape != value.shape
        ],
    }
    if any(faults.values()):
        raise CheckpointError(
            f"{path} does not fit HPSv3 on this base:"
            + "".join(f"\n  {len(bad)} {what}: {listing(bad)}" for what, bad in faults.items() if bad)
        )
    module.load_state_dict({name: value.to(device, dtype) for name, value in state.items()}, assign=True)
