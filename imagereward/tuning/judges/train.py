"""train_judge: trains a reward head on a vision-language model from rankings, and saves the judge."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from imagereward.agreement.rankings import RankedPrompt, ranking_file, read_rankings
from imagereward.checkpoints.assembling import resolve_device
from imagereward.errors import InputError, NonFiniteLossError
from imagereward.images.reading import load_pixels
from imagereward.models.vlm.asking.settings import HeadConfig, JudgeConfig
from imagereward.models.vlm.asking.templates import template_of
from imagereward.models.vlm.opening import open_model
from imagereward.models.vlm.scorer import VLMScorer
from imagereward.precision import DTYPES
from imagereward.tuning.config import build
from imagereward.tuning.data.image_pairs import skipped
from imagereward.tuning.judges.card import CARD_FILE, card
from imagereward.tuning.judges.config import UNCERTAIN, JudgeTrainingConfig
from imagereward.tuning.judges.losses import bradley_terry, expected_bradley_terry, rao_kupper, thurstone
from imagereward.tuning.settings import OptimizerConfig
from imagereward.tuning.trainer.optimizer import learning_rate_at, make_optimizer
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import (
    check_run_directory,
    create_run_directory,
    write_atomically,
)

HISTORY_FILE = "history.json"
LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
LANGUAGE = r".*(language_model|text_model)\..*"


class Pairs(NamedTuple):
    """P pairs of a batch's images: indices of the better and the worse one, and whether they are tied."""

    better: torch.Tensor
    worse: torch.Tensor
    tied: torch.Tensor


def train_judge(config: JudgeTrainingConfig) -> VLMScorer:
    """Train a judge; the best validation's is saved in `config.output`, for `imagereward.load`, and returned.

    `output` also gets a card, `run.json` (the config) and `history.json` (losses and accuracies by update).
    Raises
    InputError for bad data or config, NonFiniteLossError for a loss that is NaN or infinite.
    """
    values = config.model_dump()
    output = check_run_directory(config.output, values, False)
    train, valid = (_rankings(config, split) for split in ("train", "valid"))
    scorer = _starting_judge(config)
    adapted = _make_trainable(scorer, config)
    create_run_directory(output, values)
    learning = [value for value in scorer.parameters() if value.requires_grad]
    count = sum(value.numel() for value in learning)
    tell(f"{count} parameters learn from {len(train)} prompts, for {config.updates} updates")
    kept = _learn(scorer, config, train, valid, learning, output)
    with torch.no_grad():
        for value, best in zip(learning, kept, strict=True):
            value.copy_(best)
    if adapted is not None:
        scorer.backbone.model = adapted.merge_and_unload()
    scorer.states.forget()
    scorer.name = output.name
    scorer.eval().requires_grad_(False)
    scorer.save_pretrained(output)
    told = json.loads((output / HISTORY_FILE).read_text(encoding="utf-8"))
    text = card(config, output.name, told, (len(train), len(valid)))
    write_atomically(output / CARD_FILE, text)
    return scorer


def pair_losses(
    outputs_N_C: torch.Tensor, pairs: Pairs, loss: str, tie_threshold: float = 0.5
) -> torch.Tensor:
    """The loss [P] of every pair, of the head's outputs [N, C]: the score, or mean and log deviation."""
    first, second = outputs_N_C[pairs.better], outputs_N_C[pairs.worse]
    margins = first[:, 0] - second[:, 0]
    if loss == "bradley-terry":
        return bradley_terry(margins)
    if loss == "ties":
        return rao_kupper(margins, pairs.tied.to(margins.device), tie_threshold)
    variances = (2 * first[:, 1]).exp() + (2 * second[:, 1]).exp()
    return (expected_bradley_terry if loss == "uncertain" else thurstone)(margins, variances)


def pairs_of(prompts: Sequence[RankedPrompt], ties: bool) -> Pairs:
    """All pairs of images of the same prompt; those of equal rank only if `ties`. Images count through."""
    found, start = [], 0
    for prompt in prompts:
        ranks = prompt.ranking
        for one in range(len(ranks)):
            for other in range(one + 1, len(ranks)):
                if ranks[one] != ranks[other] or ties:
                    order = (one, other) if ranks[one] <= ranks[other] else (other, one)
                    found.append((start + order[0], start + order[1], ranks[one] == ranks[other]))
        start += len(ranks)
    better, worse, tied = (torch.tensor(column) for column in zip(*found))
    return Pairs(better, worse, tied.bool())


def _learn(
    scorer: VLMScorer,
    config: JudgeTrainingConfig,
    train: Sequence[RankedPrompt],
    valid: Sequence[RankedPrompt],
    learning: list[torch.nn.Parameter],
    output: Path,
) -> list[torch.Tensor]:
    """Update the weights `learning`; returns their values at the validation with the lowest loss."""
    settings = OptimizerConfig(
        updates=config.updates,
        learning_rate=config.learning_rate,
        warmup_updates=config.warmup_updates,
        weight_decay=config.weight_decay,
    )
    optimizer = make_optimizer(settings, learning)
    batches = _batches(train, config.batch_size, config.seed)
    history = [_validated(scorer, config, valid, 0)]
    kept, best = [value.detach().clone() for value in learning], history[0]["valid_loss"]
    for update in range(1, config.updates + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(update - 1, settings)
        loss = _update(scorer, config, next(batches), optimizer, learning, update)
        if update % config.evaluate_every == 0 or update == config.updates:
            history.append({**_validated(scorer, config, valid, update), "train_loss": loss})
            write_atomically(output / HISTORY_FILE, json.dumps(history, indent=1) + "\n")
            tell(f"update {update}: {history[-1]}")
            if history[-1]["valid_loss"] < best:
                kept, best = [value.detach().clone() for value in learning], history[-1]["valid_loss"]
    return kept


def _update(scorer, config, prompts, optimizer, learning, update: int) -> float:
    """One step on a batch of prompts, one prompt in memory at a time; returns the mean loss of pairs."""
    assert scorer.reward_head is not None
    scorer.reward_head.train()
    total, count = 0.0, len(pairs_of(prompts, config.loss == "ties").better)
    for prompt in prompts:
        pairs = pairs_of([prompt], config.loss == "ties")
        losses = pair_losses(_outputs(scorer, [prompt], config), pairs, config.loss, config.tie_threshold)
        part = losses.sum() / count
        if not part.isfinite():
            raise NonFiniteLossError(
                f"the loss of {prompt.prompt[:40]!r} in update {update} is {part.item()}; try a lower "
                f"learning_rate"
            )
        part.backward()
        total += part.item()
    torch.nn.utils.clip_grad_norm_(learning, config.max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad()
    scorer.reward_head.eval()
    return total


def _outputs(scorer: VLMScorer, prompts: Sequence[RankedPrompt], config: JudgeTrainingConfig) -> torch.Tensor:
    """The head's outputs [N, C] for all images of the prompts, with a graph of what learns."""
    paths = [path for prompt in prompts for path in prompt.generations]
    items = [item for (item,) in load_pixels(paths, scorer.processors)]
    sees = config.train == "all" or (config.lora is not None and config.lora.vision)
    with torch.set_grad_enabled(torch.is_grad_enabled() and sees):
        encoded = scorer.encode_pixels([scorer.processor.collate(items)])
    texts = [prompt.prompt for prompt in prompts for _ in prompt.generations]
    rows = [scorer.turns.row(text, encoded, [place]) for place, text in enumerate(texts)]
    return scorer.outputs(rows, encoded)


def _validated(scorer, config, valid: Sequence[RankedPrompt], update: int) -> dict[str, float]:
    """Mean loss of the validation's pairs, and the share of untied pairs in the right order."""
    scorer.states.forget()
    losses, right, untied = [], 0, 0
    with torch.no_grad():
        for prompt in valid:
            outputs = _outputs(scorer, [prompt], config)
            pairs = pairs_of([prompt], config.loss == "ties")
            losses.append(pair_losses(outputs, pairs, config.loss, config.tie_threshold).cpu())
            margins = (outputs[pairs.better, 0] - outputs[pairs.worse, 0]).cpu()
            right += int((margins[~pairs.tied] > 0).sum())
            untied += int((~pairs.tied).sum())
    return {
        "update": update,
        "valid_loss": float(torch.cat(losses).mean()),
        "accuracy": right / max(1, untied),
    }


def _batches(prompts: Sequence[RankedPrompt], size: int, seed: int) -> Iterator[list[RankedPrompt]]:
    """Batches without end: every pass over the prompts is in a new order."""
    source = random.Random(seed)
    waiting: list[RankedPrompt] = []
    while True:
        while len(waiting) < size:
            waiting += source.sample(list(prompts), len(prompts))
        yield waiting[:size]
        waiting = waiting[size:]


def _rankings(config: JudgeTrainingConfig, split: str) -> list[RankedPrompt]:
    """The ranked prompts of a split whose images are usable, with a pair to learn from."""
    path = ranking_file(config.data, split)
    records = read_rankings(path, encoding=config.encoding, allow_ties=config.loss == "ties")
    bad = skipped(path, [image for each in records for image in each.generations], config.max_bad_share)
    kept = []
    for each in records:
        there = [place for place, image in enumerate(each.generations) if str(image) not in bad]
        ranks = tuple(each.ranking[place] for place in there)
        if len(ranks) > 1 and (config.loss == "ties" or len(set(ranks)) > 1):
            kept.append(
                RankedPrompt(each.id, each.prompt, tuple(each.generations[at] for at in there), ranks)
            )
    if not kept:
        raise InputError(f"{path}: no prompt has a pair of usable images to learn from")
    return kept


def _starting_judge(config: JudgeTrainingConfig) -> VLMScorer:
    outputs = 2 if config.loss in UNCERTAIN else 1
    judge = JudgeConfig(
        config.model,
        "head",
        template_of(config.template),
        HeadConfig(config.hidden, outputs, config.dropout),
        config.pixels,
    )
    source = str(Path(config.model).expanduser())
    device, dtype = resolve_device(config.device), DTYPES[config.precision]
    model, processor = open_model(source, device, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scorer = VLMScorer(model, processor, judge)
    assert scorer.reward_head is not None
    scorer.reward_head.to(device)
    return scorer.eval().requires_grad_(False)


def _make_trainable(scorer: VLMScorer, config: JudgeTrainingConfig) -> Any:
    """Turn on the gradients of what learns; returns the model with LoRA as peft's, None without LoRA."""
    adapted = None
    if config.lora is not None:
        import peft

        where = r".*\." if config.lora.vision else LANGUAGE
        settings = peft.LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=f"{where}({LINEAR})"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            adapted = peft.get_peft_model(scorer.backbone.model, settings)
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.data = value.data.float()
    elif config.train != "head":
        part = scorer.backbone.model if config.train == "all" else scorer.backbone.language_model
        part.requires_grad_(True)
    assert scorer.reward_head is not None
    scorer.reward_head.requires_grad_(True)
    if config.checkpointing:
        scorer.set_grad_checkpointing()
    return adapted


def tune_judge(values: dict[str, Any], source: str) -> VLMScorer:
    """`train_judge` with a recipe's values; `source` names the recipe in error messages."""
    return train_judge(build(JudgeTrainingConfig, values, source))
