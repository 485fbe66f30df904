"""What a training leaves: a pipeline directory, or LoRA weights, with a model card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from imagereward.tuning.denoisers import Denoiser
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
    """Write what `DiffusionPipeline.from_pretrained`, or `load_lora_weights`, reads, and the card."""
    pipeline, network = denoiser.pipeline, denoiser.network
    if config["lora"] is not None:
        from peft.utils import get_peft_model_state_dict

        adapters = get_peft_model_state_dict(network, state_dict=dict(learned))
        # Without these, loading takes alpha to be the rank.
        facts = network.peft_config["default"].to_dict()
        facts = {key: sorted(value) if isinstance(value, set) else value for key, value in facts.items()}
        name = _name_of(pipeline, network)
        pipeline.save_lora_weights(
            output, **{f"{name}_lora_layers": adapters, f"{name}_lora_adapter_metadata": facts}
        )
    else:
        whole = network
        if any(
            name not in learned or value.shape != learned[name].shape or hasattr(value, "full_tensor")
            for name, value in network.named_parameters()
        ):  # wrapped, or a shard alone
            whole = type(network).from_config(network.config)
            whole.load_state_dict(dict(learned))
        setattr(pipeline, _name_of(pipeline, network), whole)
        pipeline.save_pretrained(output)
        setattr(pipeline, _name_of(pipeline, whole), network)
    (output / CARD_FILE).write_text(card(config, history, ended), encoding="utf-8")


def card(config: dict[str, Any], history: Sequence[dict[str, Any]], ended: str) -> str:
    """A model card: what it was made from and how, and what the evaluations before and after found."""
    prefix = "evaluation/"
    evaluations = [entry for entry in history if any(key.startswith(prefix) for key in entry)]
    kind = "LoRA weights" if config["lora"] is not None else "A pipeline"
    use = (
        "pipeline.load_lora_weights(directory)"
        if config["lora"] is not None
        else "pipeline = DiffusionPipeline.from_pretrained(directory)"
    )
    lines = [
        "---",
        f"base_model: {config['model']}",
        "library_name: diffusers",
        "tags: [text-to-image, imagereward]",
        "---",
        "",
        f"# {config['model']}, tuned by {config['objective']}",
        "",
        f"{kind}, trained with imagereward {__version__}; {ended}. Load it with `{use}`.",
        "",
    ]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        names = [key for key in last if key.startswith(prefix)]
        rows = [
            f"| {key.removeprefix(prefix)} | {first[key]:.4f} | {last[key]:.4f} |"
            for key in names
            if key in first
        ]
        seen = config["evaluation"]
        lines += [
            f"Means over at most {seen['count']} fixed prompts with {seen['seeds']} seeds each:",
            "",
            f"| | before | after {last['update']} updates |",
            "|---|---|---|",
            *rows,
            "",
        ]
    lines += ["## Config", "", "```json", json.dumps(config, indent=1), "```", ""]
    return "\n".join(lines)


def _name_of(pipeline, network) -> str:
    return next(name for name, part in pipeline.components.items() if part is network)
