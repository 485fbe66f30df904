"""Reads the JSON of SwarmUI, Fooocus, Easy Diffusion, InvokeAI, NovelAI, Draw Things and scripts."""

import json
import re
from collections.abc import Mapping
from typing import Any

from imagereward.generation_metadata.comfyui.graph import is_graph, prompt_of_graph
from imagereward.generation_metadata.entries import Claim, Dialect, UnclearPrompt

# Keys that only web UIs write beside `prompt`: their prompts may hold weights and LoRA tags.
WEB_UI_KEYS = {
    "full_prompt",
    "base_model",
    "performance",
    "styles",
    "use_stable_diffusion_model",
    "Stable Diffusion model",
    "sampler_name",
    "cfg_scale",
}
PROMPT_KEYS = ("prompt", "Prompt", "positive_prompt", "positivePrompt")
DREAM = re.compile(r'\s*"(.*?)"(?:\s+-[A-Za-z]|\s*$)', re.DOTALL)
NEGATIVE_IN_BRACKETS = re.compile(r"\[[^\[\]]*\]")


def parse_json(text: str) -> Any:
    """The object or list that `text` is in JSON; None for other text and for too deep nesting."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_json(data: Mapping[str, Any], web_ui: bool = False) -> Claim | None:
    """The prompt of a JSON object in one of the known layouts; None for an unknown layout.

    web_ui   True if the object comes from a field of web UIs: a bare `prompt` may then hold their markup,
             as it may beside keys that only web UIs write

    Raises UnclearPrompt if the layout is known and the prompt is missing, empty or ambiguous.
    """
    if "sui_image_params" in data:
        params = data["sui_image_params"]
        return _claim(params.get("prompt") if isinstance(params, dict) else None, "swarmui", "SwarmUI")
    if is_graph(data):
        return prompt_of_graph(data)
    if isinstance(data.get("prompt"), dict):
        return prompt_of_graph(data["prompt"]) if is_graph(data["prompt"]) else None
    if isinstance(data.get("image"), dict) and "prompt" in data["image"]:
        return _old_invokeai(data["image"]["prompt"])
    if "c" in data and "uc" in data:
        return _claim(data["c"], "webui", "Draw Things")
    if "v4_prompt" in data or ("uc" in data and "prompt" in data):
        return _novelai(data)
    if "positive_prompt" in data and ("generation_mode" in data or "app_version" in data):
        return read_invokeai(data)
    for key in PROMPT_KEYS:
        if key in data:
            web_ui = web_ui or not WEB_UI_KEYS.isdisjoint(data)
            return _claim(data[key], "webui" if web_ui else "plain", f"JSON key {key!r}")
    return None


def read_invokeai(data: Mapping[str, Any]) -> Claim:
    """The prompt in InvokeAI's metadata since version 3, without the style prompt for SDXL's 2nd encoder."""
    regions = data.get("regions")
    if isinstance(regions, list) and any(
        isinstance(each, dict) and (each.get("positivePrompt") or each.get("positive_prompt"))
        for each in regions
    ):
        raise UnclearPrompt("InvokeAI was given other texts for regions of the picture")
    return _claim(data.get("positive_prompt"), "invokeai", "InvokeAI")


def read_dream(text: str) -> Claim:
    """The prompt in the command line that InvokeAI 1 wrote: `"a cat [blurry]" -s 50 -S 42 ...`."""
    found = DREAM.match(text)
    if found is None:
        raise UnclearPrompt("InvokeAI's command line does not begin with a prompt in quotes")
    return _old_invokeai(found[1])


def _old_invokeai(prompt: Any) -> Claim:
    """The prompt of InvokeAI 1 and 2: a text or weighted texts, with the negative in square brackets."""
    if isinstance(prompt, list):
        texts = [part.get("prompt") for part in prompt if isinstance(part, dict)]
        if len(texts) != 1:
            raise UnclearPrompt(f"InvokeAI blended {len(texts)} prompts")
        prompt = texts[0]
    claim = _claim(prompt, "invokeai", "InvokeAI")
    positive = NEGATIVE_IN_BRACKETS.sub("", claim.prompt)
    if "[" in positive or "]" in positive:
        raise UnclearPrompt("InvokeAI's negative prompt, in square brackets, does not end")
    return _claim(re.sub(r"[ \t]{2,}", " ", positive), "invokeai", "InvokeAI")


def _novelai(data: Mapping[str, Any]) -> Claim:
    """NovelAI's base prompt, joined with ", " to each character's prompt since model version 4."""
    version4 = data.get("v4_prompt")
    caption = version4.get("caption") if isinstance(version4, dict) else None
    if not isinstance(caption, dict):
        return _claim(data.get("prompt"), "novelai", "NovelAI")
    characters = caption.get("char_captions") or []
    texts = [caption.get("base_caption") or data.get("prompt")]
    if isinstance(characters, list):
        texts += [each.get("char_caption") for each in characters if isinstance(each, dict)]
    prompts = [text.strip(" ,") for text in texts if isinstance(text, str)]
    if len(prompts) < len(texts):
        raise UnclearPrompt("a prompt of NovelAI's characters is not a text")
    return _claim(", ".join(filter(None, prompts)), "novelai", "NovelAI")


def _claim(prompt: Any, dialect: Dialect, writer: str) -> Claim:
    if not isinstance(prompt, str):
        raise UnclearPrompt(f"{writer}: expected a prompt as text, found {type(prompt).__name__}")
    if not prompt.strip():
        raise UnclearPrompt(f"{writer}: the positive prompt is empty")
    return Claim(prompt.strip(), dialect)
