"""save_result: writes the tuned pipeline or its LoRA weights, with a model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from imagereward.tuning.families.base import Denoiser
from imagereward.tuning.sharding import class_of, is_sharded
from imagereward.version import __version__

CARD_FILE = "README.md"
LORA_FILE = "pytorch_lora_weights.safetensors"


def save_result(
    denoiser: Denoiser,
    learned: Mapping[str, torch.Tensor],
    output: Path,
    config: dict[str, Any],
    history: Sequence[dict[str, Any]],
    ended: str,
) -> None:
    """Write the tuned pipeline, or with LoRA the adapters, and the model card to `output`.

    learned  the trainable weights by name, unsharded, on the CPU, as `sharding.whole_weights` gathers them
    config   the run's config
    history  the logged numbers
    ended    why the training ended

    `DiffusionPipeline.from_pretrained` reads the pipeline, `load_lora_weights` the adapters. A sharded
    network is replaced by the whole one in the pipeline.
    """
    pipeline, network = denoiser.pipeline, denoiser.network
    if config["lora"] is not None:
        save_lora(denoiser, learned, output)
    else:
        whole = network
        if is_sharded(network) or network.state_dict().keys() - learned.keys():
            # The weights are put in as they are: a second copy of a large network may not fit.
            with init_empty_weights(include_buffers=False):
                whole = class_of(network).from_config(network.config)
            whole.load_state_dict(dict(learned), assign=True)
        setattr(pipeline, _name_of(pipeline, network), whole)
        pipeline.save_pretrained(output)
        if not is_sharded(network):
            setattr(pipeline, _name_of(pipeline, whole), network)
    text = card(config, history, ended, loading_lines(denoiser.pipeline, output, config))
    (output / CARD_FILE).write_text(text, encoding="utf-8")


def save_lora(denoiser: Denoiser, learned: Mapping[str, torch.Tensor], directory: Path) -> None:
    """Write the adapters' weights `learned` to `directory`, for diffusers' `load_lora_weights`."""
    from peft.utils import get_peft_model_state_dict

    pipeline, network = denoiser.pipeline, denoiser.network
    adapters = get_peft_model_state_dict(network, state_dict=dict(learned))
    # Without this metadata, diffusers takes alpha to equal the rank.
    facts = network.peft_config["default"].to_dict()
    facts = {key: sorted(value) if isinstance(value, set) else value for key, value in facts.items()}
    name = _name_of(pipeline, network)
    pipeline.save_lora_weights(
        directory, **{f"{name}_lora_layers": adapters, f"{name}_lora_adapter_metadata": facts}
    )


def loading_lines(pipeline, output: Path, config: dict[str, Any]) -> list[str]:
    """Lines of Python that load the result in `output`.

    All parts get one dtype; parts that the pipeline lacks are given as None.
    """
    source, dtype = "directory", "float32"
    if config["lora"] is not None:
        base = str(pipeline.name_or_path or "")
        source, dtype = repr(base), config["precision"]
        if not base:
            line = "pipeline.load_lora_weights(directory)  # into the pipeline that was tuned"
            return [f"directory = {str(output)!r}", line]
    # diffusers refuses a pipeline without one of its parts, such as SD3's third text encoder, unless the part
    # is given as None.
    absent = [
        f", {name}=None"
        for name, part in pipeline.components.items()
        if part is None and name not in pipeline._optional_components
    ]
    lines = [
        "import torch",
        "from diffusers import DiffusionPipeline",
        "",
        f"directory = {str(output)!r}",
        f"pipeline = DiffusionPipeline.from_pretrained({source}, dtype=torch.{dtype}{''.join(absent)})",
    ]
    return [*lines, "pipeline.load_lora_weights(directory)"] if config["lora"] is not None else lines


def evaluated(history: Sequence[Mapping[str, Any]]) -> tuple[int, list[tuple[str, float, float]]]:
    """(update of the last evaluation, [(name, value in the first evaluation, value in the last)])."""
    prefix = "evaluation/"
    found = [entry for entry in history if any(key.startswith(prefix) for key in entry)]
    if not found:
        return 0, []
    first, last = found[0], found[-1]
    names = [key for key in last if key.startswith(prefix) and key in first]
    return last["update"], [(key.removeprefix(prefix), first[key], last[key]) for key in names]


def card(
    config: dict[str, Any], history: Sequence[dict[str, Any]], ended: str, loading: Sequence[str]
) -> str:
    """The model card in Markdown: base model, first and last evaluation, config, and how to load the result.

    ended    why the training ended
    loading  lines of Python that load the result
    """
    kind = "LoRA weights" if config["lora"] is not None else "A pipeline"
    lines = [
        "---",
        f"base_model: {config['model']}",
        "library_name: diffusers",
        "tags: [text-to-image, imagereward]",
        "---",
        "",
        f"# {config['model']}, tuned by {config['objective']}",
        "",
        f"{kind}, trained with imagereward {__version__}; {ended}. To load it:",
        "",
        "```python",
        *loading,
        "```",
        "",
    ]
    update, found = evaluated(history)
    if found:
        rows = [f"| {name} | {before:.4f} | {after:.4f} |" for name, before, after in found]
        seen = config["evaluation"]
        lines += [
            f"Means over at most {seen['count']} fixed prompts with {seen['seeds']} seeds each:",
            "",
            f"| | before | after {update} updates |",
            "|---|---|---|",
            *rows,
            "",
        ]
    lines += ["## Config", "", "```json", json.dumps(config, indent=1), "```", ""]
    return "\n".join(lines)


def _name_of(pipeline, network) -> str:
    return next(name for name, part in pipeline.components.items() if part is network)
