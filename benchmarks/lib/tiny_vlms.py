"""Tiny vision-language models with random weights, as directories that transformers loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

from benchmarks.lib.tiny_tokenizers import tokenizer

CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
COMMON = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROLES = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
WIDTH = 32
# The language model; 2 key-value heads for 4 query heads, as large models have fewer of these.
TEXT = {"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": False}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SIGLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}

Parts = tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]


def _words(qwen: bool, special: tuple[str, ...], **roles: str) -> PreTrainedTokenizerFast:
    return tokenizer((*COMMON, *special), {**ROLES, **roles}, qwen=qwen)


def _ids(words: PreTrainedTokenizerFast, **tokens: str) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(token) for name, token in tokens.items()}


def _text(words: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    ends = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": None}
    return {**TEXT, "vocab_size": len(words), **ends, **more}


def _qwen_family(version: str, qwen: bool, config: dict[str, Any]) -> Parts:
    words = _words(qwen, QWEN)
    marks = _ids(
        words,
        image_token_id="<|image_pad|>",
        video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )
    settings = getattr(transformers, f"{version}Config")(
        text_config=_text(words, **config["text"]),
        vision_config=config["vision"],
        **marks,
        tie_word_embeddings=False,
    )
    size = {"size": {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, "patch_size": 4, "merge_size": 2}
    images = transformers.Qwen2VLImageProcessor(**size)
    chat = CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    kind = "Qwen2VL" if version == "Qwen2VL" else "Qwen2_5_VL" if version == "Qwen2_5_VL" else "Qwen3VL"
    videos = transformers.Qwen3VLVideoProcessor if kind == "Qwen3VL" else transformers.Qwen2VLVideoProcessor
    processor = getattr(transformers, f"{kind}Processor")(images, words, videos(**size), chat_template=chat)
    return getattr(transformers, f"{version}ForConditionalGeneration")(settings), processor


def qwen2_vl(qwen: bool) -> Parts:
    """Qwen2-VL: as many tokens as an image has blocks of patches; rotary positions in three axes."""
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": WIDTH,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 4,
    }
    text = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}
    return _qwen_family("Qwen2VL", qwen, {"text": text, "vision": vision})


def qwen2_5_vl(qwen: bool) -> Parts:
    """Qwen2.5-VL: window attention in the vision tower."""
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 4}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1], "out_hidden_size": WIDTH}
    text = {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 2]}}
    return _qwen_family("Qwen2_5_VL", qwen, {"text": text, "vision": vision})


def qwen3_vl(qwen: bool) -> Parts:
    """Qwen3-VL: features of inner vision layers are added inside the language model."""
    vision = {"depth": 3, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "patch_size": 4}
    vision |= {"out_hidden_size": WIDTH, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}, "head_dim": 8}
    return _qwen_family("Qwen3VL", qwen, {"text": text, "vision": vision})


def llava_onevision(qwen: bool) -> Parts:
    """LLaVA-OneVision: an image and its tiles, over SigLIP and Qwen2."""
    words = _words(qwen, ("<image>", "<video>"), image_token="<image>", video_token="<video>")
    pins = [[16, 16], [16, 32], [32, 16], [32, 32]]
    settings = transformers.LlavaOnevisionConfig(
        vision_config={**SIGLIP, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4}
        | {"vision_use_head": False},
        text_config={**_text(words, rope_parameters=ROPE), "model_type": "qwen2"},
        image_grid_pinpoints=pins,
        vision_feature_layer=-1,
        **_ids(words, image_token_index="<image>", video_token_index="<video>"),
    )
    size = {"height": 16, "width": 16}
    processor = transformers.LlavaOnevisionProcessor(
        transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pins),
        words,
        transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT.replace("IMAGE", "<image>\n"),
    )
    return transformers.LlavaOnevisionForConditionalGeneration(settings), processor


def internvl(qwen: bool) -> Parts:
    """InternVL: tiles of one size and a thumbnail, over InternViT and Qwen2."""
    special = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    roles = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
    }
    words = _words(qwen, special, video_token="<video>", **roles)
    settings = transformers.InternVLConfig(
        vision_config={**SIGLIP, "image_size": [16, 16], "patch_size": [4, 4]},
        text_config={**_text(words, rope_parameters=ROPE), "model_type": "qwen2"},
        image_seq_length=4,
        tie_word_embeddings=False,
        **_ids(words, image_token_id="<IMG_CONTEXT>"),
    )
    size = {"height": 16, "width": 16}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        words,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return transformers.InternVLForConditionalGeneration(settings), processor


def gemma3(qwen: bool) -> Parts:
    """Gemma 3: 4 tokens for every image, which attend to each other both ways; sliding windows in a layer."""
    special = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    roles = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = _words(qwen, special, **roles)
    layers = ["sliding_attention", "full_attention"]
    settings = transformers.Gemma3Config(
        text_config=_text(
            words, head_dim=8, sliding_window=1024, layer_types=layers, query_pre_attn_scalar=8
        ),
        vision_config={**SIGLIP, "image_size": 16, "patch_size": 4, "vision_use_head": False},
        mm_tokens_per_image=4,
        **_ids(words, boi_token_index=special[0], eoi_token_index=special[1], image_token_index=special[2]),
        tie_word_embeddings=False,
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": 16, "width": 16}),
        words,
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<start_of_image>"),
    )
    return transformers.Gemma3ForConditionalGeneration(settings), processor


def smolvlm(qwen: bool) -> Parts:
    """SmolVLM: tiles with their row and column in words, over SigLIP and Llama."""
    places = tuple(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5))
    special = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    words = _words(qwen, special, image_token="<image>", fake_image_token="<fake_token_around_image>")
    settings = transformers.SmolVLMConfig(
        vision_config={**SIGLIP, "image_size": 16, "patch_size": 4},
        text_config={**_text(words, rope_parameters=ROPE), "model_type": "llama"},
        scale_factor=2,
        **_ids(words, image_token_id="<image>"),
    )
    size = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**size),
        words,
        transformers.SmolVLMVideoProcessor(**size),
        image_seq_len=4,
        chat_template=CHAT.replace("IMAGE", "<image>"),
    )
    return transformers.SmolVLMForConditionalGeneration(settings), processor


ARCHITECTURES: dict[str, Callable[[bool], Parts]] = {
    "Qwen2-VL": qwen2_vl,
    "Qwen2.5-VL": qwen2_5_vl,
    "Qwen3-VL": qwen3_vl,
    "LLaVA-OneVision": llava_onevision,
    "InternVL": internvl,
    "Gemma 3": gemma3,
    "SmolVLM": smolvlm,
}


def save_tiny_vlm(architecture: str, directory: Path, *, qwen: bool = False, seed: int = 0) -> Path:
    """Write a tiny model of an architecture, with its processor, to `directory`; returns it.

    architecture  a key of `ARCHITECTURES`
    qwen          with Qwen's real vocabulary, of the package dashscope
    seed          of the random weights: matrices normal with variance 2 / inputs, so that answers differ
    """
    model, processor = ARCHITECTURES[architecture](qwen)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            scale = (2 / parameter[0].numel()) ** 0.5
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory
