"""Finds the samplers of a ComfyUI graph and the positive prompt that they were given.

Links are followed backwards from the positive input of every sampler. If the text is not in the graph, or if
samplers got different texts, the prompt is unclear. Combined or concatenated conditionings over the same part
of the image are joined with ", " into one prompt; over different parts they are unclear.
"""

from collections.abc import Mapping
from typing import Any

from imagereward.generation_metadata.comfyui.nodes import LOCAL_PASSES, NEVER_LAST
from imagereward.generation_metadata.comfyui.text import Follower, is_link
from imagereward.generation_metadata.entries import Claim, UnclearPrompt

MOST_NODES = 5000
MOST_SAMPLERS = 32
FED_TO_SAMPLERS = ("latent_image", "latent", "latents", "samples", "pipe", "basic_pipe", "sdxl_tuple")


def is_graph(data: Any) -> bool:
    """Whether `data` is a graph in ComfyUI's API format: {node id: {"class_type": ..., "inputs": ...}}."""
    return (
        isinstance(data, dict)
        and bool(data)
        and any(
            isinstance(node, dict) and "class_type" in node and "inputs" in node for node in data.values()
        )
    )


def prompt_of_graph(data: Mapping[str, Any]) -> Claim:
    """The positive prompt of a graph. Raises UnclearPrompt, naming the node, if there is no single one."""
    if len(data) > MOST_NODES:
        raise UnclearPrompt(f"ComfyUI's graph has {len(data)} nodes, more than {MOST_NODES}")
    follower = Follower(data)
    samplers = [key for key in follower.inputs if _is_sampler(follower, key)]
    if len(samplers) > MOST_SAMPLERS:
        raise UnclearPrompt(f"ComfyUI's graph has {len(samplers)} samplers, more than {MOST_SAMPLERS}")
    samplers = _run(follower, samplers)
    if not samplers:
        local = [key for key in follower.inputs if _is_local_pass(follower, key)]
        what = f"only {follower.name(local[0])}, which changes parts of a picture" if local else "no sampler"
        raise UnclearPrompt(f"ComfyUI's graph has {what}")
    found: dict[str, tuple[str, str]] = {}
    for key in samplers:
        text = follower.prompt_of_sampler(key)
        found.setdefault(" ".join(text.split()), (key, text))
    if len(found) > 1:
        given = "; ".join(f"{follower.name(key)}: {text[:60]!r}" for key, text in found.values())
        raise UnclearPrompt(f"ComfyUI's samplers were given different texts ({given[:400]})")
    (_, text) = next(iter(found.values()))
    if not text.strip():
        raise UnclearPrompt("ComfyUI's positive prompt is empty")
    return Claim(text.strip(), "webui" if follower.web_ui_syntax else "comfyui")


def _is_local_pass(follower: Follower, key: str) -> bool:
    name = follower.classes[key].lower()
    return any(each in name for each in LOCAL_PASSES) and "positive" in follower.inputs[key]


def _is_sampler(follower: Follower, key: str) -> bool:
    """Whether a node samples latents, judged by its name and inputs, so that custom nodes count too."""
    if _is_local_pass(follower, key):
        return False
    inputs, name = follower.inputs[key], follower.classes[key].lower()
    seeded = "seed" in inputs or "noise_seed" in inputs or is_link(inputs.get("noise"))
    latents = any(is_link(inputs.get(each)) for each in FED_TO_SAMPLERS)
    guided = is_link(inputs.get("positive")) or is_link(inputs.get("guider"))
    samples = "sampl" in name and "upsampl" not in name
    return (samples and (seeded or latents or guided)) or (seeded and guided)


def _run(follower: Follower, samplers: list[str]) -> list[str]:
    """The samplers whose output reaches a node that runs; all samplers if no node saves or previews."""
    after: dict[str, list[str]] = {}
    for key, inputs in follower.inputs.items():
        for value in inputs.values():
            if is_link(value):
                after.setdefault(str(value[0]), []).append(key)

    def is_run(sampler: str) -> bool:
        waiting, seen = [sampler], {sampler}
        while waiting:
            key = waiting.pop()
            if follower.classes[key] not in NEVER_LAST:
                return True
            fresh = [each for each in after.get(key, []) if each not in seen]
            seen.update(fresh)
            waiting += fresh
        return False

    saving = [key for key in follower.inputs if _saves(follower, key)]
    return [sampler for sampler in samplers if is_run(sampler)] if saving else samplers


def _saves(follower: Follower, key: str) -> bool:
    name = follower.classes[key].lower()
    return ("save" in name or "preview" in name) and any(map(is_link, follower.inputs[key].values()))
