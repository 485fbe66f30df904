"""Trains a vision-language model for two cores to judge drawings of Shapes, from random weights.

python -m benchmarks.toy_models.tiny_vlm WORKDIR            trains it; goes on where it stopped
python -m benchmarks.toy_models.tiny_vlm WORKDIR --adopt    then puts it where tests and benchmarks look
python -m benchmarks.toy_models.tiny_vlm WORKDIR --measure  measures the adopted one: results/tiny-vlm.json

It is a small Qwen2-VL. First it learns to write the prompt of a drawing, word by word, and so what the words
look like. Then a reward head is added and all learns by the recipe beside this file: of two drawings the one
with fewer mistakes is better. Drawings are also damaged, by chance, which says nothing about which is better.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

import imagereward as RM
from benchmarks.lib import record
from benchmarks.lib.paths import TINY_VLM
from benchmarks.shapes.scorer_accuracy import SEED, accuracy_rows
from imagereward import shapes
from imagereward.table import table
from imagereward.tuning import run_recipe

RECIPE = Path(__file__).with_suffix(".toml")
PROMPTS, VALIDATED, DATA_SEED, HELD_OUT = 8000, 200, 1, 1000
# Drawings of a prompt, by their number of mistakes; 3 stands for another scene.
LEVELS = (0, 1, 2, 3)
# Odds of levels 0 to 3 of damage to the pixels: as judged images are seldom clean, it learns to look past it.
DAMAGE = (0.7, 0.2, 0.1, 0.0)
# Half of the prompts are for a single thing, in which the words cannot be assigned to the wrong thing.
THINGS = (1, 2)
SIDE, PATCH, MERGED = 64, 8, 2
WIDTH = 128
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
VISION = {
    "depth": 3,
    "embed_dim": 96,
    "hidden_size": WIDTH,
    "num_heads": 4,
    "mlp_ratio": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGED,
}
# Updates in which it learns to write prompts, newly drawn pairs in each, and the highest learning rate.
CAPTIONS, CAPTIONED_AT_ONCE, CAPTION_SEED, CAPTION_RATE = 1000, 64, 2, 2e-3
PAD, UNKNOWN, END = "<|endoftext|>", "<|unknown|>", "<|im_end|>"
MARKS = {
    "vision_start_token_id": "<|vision_start|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_end_token_id": "<|vision_end|>",
}
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>{% endfor %}"
)
# Layers whose output is added to what is there: they begin with half the deviation.
ADDED = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", "fc2.weight")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words: those of Shapes have a token each, all others share one."""
    special = [PAD, UNKNOWN, END, *MARKS.values()]
    words = [*special, *(word for word in shapes.vocabulary() if not word.startswith("##"))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=UNKNOWN))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def start(seed: int = 1) -> tuple[transformers.PreTrainedModel, transformers.ProcessorMixin]:
    """(model with random weights, its processor).

    Matrices are normal with variance 1 / inputs: transformers' own deviation of 0.02 suits models that are
    many times as wide.
    """
    words = make_tokenizer()
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    config = transformers.Qwen2VLConfig(
        text_config={**TEXT, **ids, "vocab_size": len(words)},
        vision_config=VISION,
        tie_word_embeddings=True,
        **{name: words.convert_tokens_to_ids(token) for name, token in MARKS.items()},
    )
    size = {"size": {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}}
    size |= {"patch_size": PATCH, "merge_size": MERGED}
    pixels = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    processor = transformers.Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessor(**size, **pixels),
        words,
        transformers.Qwen2VLVideoProcessor(**size, **pixels),
        chat_template=CHAT,
    )
    torch.manual_seed(seed)
    model = transformers.Qwen2VLForConditionalGeneration(config)
    for name, value in model.named_parameters():
        if value.ndim > 1:
            std = 0.5 if "embed_tokens" in name else value[0].numel() ** -0.5
            torch.nn.init.normal_(value, std=std / 2 if name.endswith(ADDED) else std)
    return model, processor


def learn_captions(model: Any, processor: Any, updates: int = CAPTIONS) -> float:
    """Teach the model to write the prompt of a drawing, in place; returns the mean loss of the last tenth.

    The loss is the cross entropy of the prompt's words and of the end, given drawing and words before.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=CAPTION_RATE, betas=(0.9, 0.98), weight_decay=1e-2)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, min(100, updates // 2), updates)
    marks = [getattr(model.config, name) for name in MARKS]
    unasked = torch.tensor([processor.tokenizer.pad_token_id, *marks])
    losses = []
    for update in (bar := tqdm(range(updates), "captions", unit="update")):
        first = update * CAPTIONED_AT_ONCE
        pairs = [
            shapes.pair(at, CAPTION_SEED, "train", SIDE, THINGS[at % len(THINGS)])
            for at in range(first, first + CAPTIONED_AT_ONCE)
        ]
        texts = [_turn(processor, prompt) for prompt, _ in pairs]
        images = [image for _, image in pairs]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        labels = inputs.input_ids.masked_fill(torch.isin(inputs.input_ids, unasked), -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return float(np.mean(losses[-max(1, updates // 10) :]))


def _turn(processor: Any, prompt: str) -> str:
    """The chat's text of an image and its prompt."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    return processor.apply_chat_template([{"role": "user", "content": content}])


def write_rankings(out: Path, prompts: int = PROMPTS, validated: int = VALIDATED) -> None:
    """Write train.json and valid.json, in ImageRewardDB's layout: of every prompt a drawing of each level."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split, count in {"train": prompts, "valid": validated}.items():
        rows = [_ranking(out, split, index) for index in range(count)]
        (out / f"{split}.json").write_text(json.dumps(rows))


def _ranking(out: Path, split: str, index: int) -> dict:
    rng = np.random.default_rng([DATA_SEED, len(split), index])
    request = shapes.ask(rng, split, THINGS[index % len(THINGS)])
    names = [f"images/{split}-{index}-{level}.png" for level in LEVELS]
    for level, name in zip(LEVELS, names, strict=True):
        image, _ = shapes.candidate(request, level, int(rng.choice(len(DAMAGE), p=DAMAGE)), rng, SIDE)
        image.save(out / name, compress_level=1)
    ranking = [level + 1 for level in LEVELS]
    return {
        "id": f"{split}-{index}",
        "prompt": shapes.say(request, rng),
        "generations": names,
        "ranking": ranking,
    }


def make(work: Path, overrides: tuple[str, ...] | list[str] = (), captions: int = CAPTIONS) -> Path:
    """Draw the rankings and train the judge, or the rest of it; returns its directory.

    captions  updates in which the model first learns to write prompts
    """
    data, beginning, tuned = work / "rankings", work / "start", work / "tiny-vlm"
    if not (data / "valid.json").is_file():  # the last file that is written
        write_rankings(data)
    if not (beginning / "config.json").is_file():
        model, processor = start()
        began = time.process_time()
        loss = learn_captions(model, processor, captions)
        times = {"cpu_seconds": round(time.process_time() - began), "caption_loss": loss}
        (work / "captions.json").write_text(json.dumps(times))
        processor.save_pretrained(beginning)
        model.save_pretrained(beginning)
    if not (tuned / "judge.json").is_file():
        began = time.process_time()
        resume = ["resume=true"] if (tuned / "run.json").is_file() else []
        paths = [f"model={beginning}", f"data={data}", f"output={tuned}"]
        try:
            run_recipe(RECIPE, [*paths, *overrides, *resume])
        finally:  # interrupted runs cost time, too
            with open(work / "times.jsonl", "a") as file:
                file.write(json.dumps({"cpu_seconds": round(time.process_time() - began)}) + "\n")
    return tuned


def adopt(judge: Path, home: Path = TINY_VLM) -> None:
    """Write the judge in half precision to where tests and benchmarks read it."""
    scorer = RM.load(judge, "cpu")
    scorer.backbone.model.half()
    scorer.name = home.name
    scorer.save_pretrained(home)


def measure(work: Path, prompts: int = HELD_OUT) -> dict:
    """Accuracy of the adopted judge on newly drawn images of held-out prompts, and how it was trained."""
    scorer = RM.load(TINY_VLM, "cpu")
    rows = accuracy_rows(scorer, prompts, most_things=max(THINGS))
    print(table(rows))
    history = json.loads((work / "tiny-vlm" / "history.json").read_text())
    times = [json.loads(line)["cpu_seconds"] for line in (work / "times.jsonl").read_text().splitlines()]
    captions = json.loads((work / "captions.json").read_text())
    with safe_open(TINY_VLM / "model.safetensors", "pt") as file:
        parameters = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    return {
        "recipe": RECIPE.name,
        "data": {"prompts": PROMPTS, "levels": LEVELS, "damage": DAMAGE, "things": THINGS, "seed": DATA_SEED},
        "held_out": {"prompts": prompts, "seed": SEED, "things": max(THINGS)},
        "captions": {"updates": CAPTIONS, "at_once": CAPTIONED_AT_ONCE, "loss": captions["caption_loss"]},
        "seconds": {"captions": captions["cpu_seconds"], "judge": sum(times)},
        "parameters": parameters,
        "megabytes": sum(path.stat().st_size for path in TINY_VLM.iterdir()) / 1e6,
        "rows": rows,
        "history": [entry for entry in history if "valid_loss" in entry],
        "environment": record.environment(scorer.device),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="a directory for data and checkpoints")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--adopt", action="store_true", help="put the trained judge into the repository")
    parser.add_argument("--measure", action="store_true", help="measure the adopted judge")
    record.add_option(parser)
    arguments = parser.parse_args()
    if arguments.measure:
        record.refuse_changes(arguments.allow_changes)
    tuned = make(arguments.work, arguments.overrides)
    if arguments.adopt:
        adopt(tuned)
    if arguments.measure:
        print(record.write("tiny-vlm", measure(arguments.work)))


if __name__ == "__main__":
    main()
