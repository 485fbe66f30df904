"""CPU time of ten prompts for each of 16 images, against one for each, and against a plain loop.

    python -m benchmarks.scoring.judges [--pairs 20]

Two models with random weights: the tests' tiny Qwen2-VL, and one with the widths of Qwen2-VL-2B and 2 layers
in each of its towers (of 28 and 32), whose time is divided between them as in the whole model. The plain loop
asks transformers for every pair alone, with its processor; it is timed on some pairs and scaled to 160.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.tiny_tokenizers import qwen_vocabulary_file
from benchmarks.lib.tiny_vlms import qwen2_vl, save_tiny_vlm
from imagereward.models.vlm.asking.templates import TEMPLATES

IMAGES, PROMPTS = 16, 10
SIDE = 448  # 256 tokens an image with 28 x 28 pixels a token
MOST_RATIO = 2.5
WORDS = [
    "a",
    "small",
    "red",
    "bicycle",
    "leans",
    "on",
    "the",
    "old",
    "stone",
    "wall",
    "of",
    "a",
    "quiet",
    "garden",
    "at",
    "dusk",
]
# Widths of Qwen2-VL-2B-Instruct, by its published config.
TEXT_2B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
}
VISION_2B = {"embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}


def save_wide_vlm(directory: Path) -> Path:
    """Write a model with the widths of Qwen2-VL-2B, 2 layers in each tower."""
    tiny, processor = qwen2_vl(qwen_vocabulary_file() is not None)
    config = tiny.config.to_dict()
    config["text_config"] |= {**TEXT_2B, "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    config["text_config"]["rope_parameters"] |= {"mrope_section": [16, 24, 24]}
    config["vision_config"] |= {**VISION_2B, "depth": 2}
    transformers.Qwen2VLForConditionalGeneration(transformers.Qwen2VLConfig(**config)).save_pretrained(
        directory
    )
    processor.image_processor.patch_size = 14
    processor.image_processor.size = {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE}
    processor.save_pretrained(directory)
    return directory


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median CPU time of `repeats` calls, after one that is not counted: other programs do not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])


def plain_pair(model: Any, processor: Any, prompt: str, image: PIL.Image.Image) -> float:
    """The probability of Yes by transformers alone."""
    text = TEMPLATES["shows"].text.removeprefix("{image}").replace("{prompt}", prompt)
    content = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    (yes,) = processor.tokenizer("Yes", add_special_tokens=False).input_ids
    with torch.inference_mode():
        return float(model(**inputs).logits[0, -1].softmax(-1)[yes])


def measure(directory: Path, side: int, pairs: int, repeats: int) -> dict[str, float]:
    """CPU seconds for 16 pairs, 160 pairs, and 160 by a plain loop; their ratios; the largest difference."""
    rng = np.random.default_rng(0)
    images = [
        PIL.Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(IMAGES)
    ]
    prompts = [" ".join(rng.permutation(WORDS)) for _ in range(PROMPTS)]
    judge = RM.load(f"vqa:{directory}", "cpu", pixels=(side * side, side * side))
    one = seconds(lambda: judge.score_matrix(prompts[:1], images), repeats)
    ten = seconds(lambda: judge.score_matrix(prompts, images), repeats)
    model = transformers.AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(directory)
    processor.image_processor.size = {"shortest_edge": side * side, "longest_edge": side * side}
    places = [(index % PROMPTS, index // PROMPTS) for index in range(pairs)]
    plain_pair(model, processor, prompts[0], images[0])
    start = time.process_time()
    plain = [plain_pair(model, processor, prompts[prompt], images[image]) for prompt, image in places]
    loop = (time.process_time() - start) / pairs * IMAGES * PROMPTS
    scores = judge.score_matrix(prompts, images[: places[-1][1] + 1])
    found = [scores[prompt, image] for prompt, image in places]
    return {
        "one_prompt_cpu_s": one,
        "ten_prompts_cpu_s": ten,
        "plain_loop_ten_prompts_cpu_s": loop,
        "ten_over_one": ten / one,
        "loop_over_ten": loop / ten,
        "largest_relative_difference": float(np.max(np.abs(np.array(found) / np.array(plain) - 1))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20, help="pairs that the plain loop is timed on")
    parser.add_argument("--repeats", type=int, default=1, help="timed calls, of which the median counts")
    record.add_option(parser)
    arguments = parser.parse_args()
    record.refuse_changes(arguments.allow_changes)
    environment = record.environment(torch.device("cpu"))  # of the code that is measured
    found = {}
    known = qwen_vocabulary_file() is not None  # else words are bytes, and texts are long
    with tempfile.TemporaryDirectory() as place:
        for name, directory, side in (
            ("tiny Qwen2-VL", save_tiny_vlm("Qwen2-VL", Path(place, "tiny"), qwen=known), 128),
            ("widths of Qwen2-VL-2B, 2 layers", save_wide_vlm(Path(place, "wide")), SIDE),
        ):
            found[name] = measure(directory, side, arguments.pairs, arguments.repeats)
            print(name, {key: float(f"{value:.3g}") for key, value in found[name].items()}, flush=True)
    result = {"most_ratio": MOST_RATIO, "models": found, "environment": environment}
    print(record.write("judges-cpu", result))


if __name__ == "__main__":
    main()
