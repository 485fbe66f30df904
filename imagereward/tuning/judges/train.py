"""train_judge: trains a reward head on a vision-language model from rankings, and saves the judge."""

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imagereward.agreement.rankings import RankedPrompt
from imagereward.errors import InputError, NonFiniteScoreError
from imagereward.models.vlm.asking.settings import HeadConfig, JudgeConfig
from imagereward.models.vlm.asking.templates import template_of
from imagereward.models.vlm.opening import open_model
from imagereward.models.vlm.scorer import VLMScorer
from imagereward.precision import DTYPES
from imagereward.tuning.config import build
from imagereward.tuning.distributed import gather_objects
from imagereward.tuning.judges.card import CARD_FILE, card
from imagereward.tuning.judges.config import UNCERTAIN, JudgeTrainingConfig
from imagereward.tuning.judges.data import rankings
from imagereward.tuning.judges.objective import JudgeLearner, JudgeModule, JudgeObjective
from imagereward.tuning.policy.snapshots import Snapshot
from imagereward.tuning.policy.trainable import trainable_parameters
from imagereward.tuning.trainer.accelerate_setup import (
    accelerating,
    join,
    make_accelerator,
    shard_network,
    start_trackers,
)
from imagereward.tuning.trainer.checkpoint import latest_state
from imagereward.tuning.trainer.liveness import watched
from imagereward.tuning.trainer.memory import keep_freed_memory
from imagereward.tuning.trainer.plan import updates
from imagereward.tuning.trainer.progress import facts, tell
from imagereward.tuning.trainer.run_directory import (
    check_run_directory,
    create_run_directory,
    write_atomically,
)
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import SHARDING_KEYS

# The snapshot of the weights at the validation with the lowest loss.
BEST = "best"
LINEAR = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
# Those of LINEAR, and the names of linear layers in the vision towers of Qwen, CLIP and SigLIP.
SEEING = rf"{LINEAR}|qkv|attn\.proj|out_proj|fc1|fc2|linear_fc1|linear_fc2"
LANGUAGE = r".*(language_model|text_model)\..*"


@accelerating()
def train_judge(config: JudgeTrainingConfig) -> VLMScorer:
    """Train a judge; the best validation's is saved in `config.output`, for `imagereward.load`, and returned.

    `output` then holds the judge, a card, `run.json` (the config), `history.json` (losses and accuracies by
    update) and the last checkpoints. Raises InputError for bad data or config, and for an output directory
    that holds another run; NonFiniteLossError for a loss or score that is NaN or infinite; CheckpointError
    for a checkpoint that cannot be written or read, ProcessLostError in all other processes if one of several
    ends too early.

    With sharded weights the returned judge is whole, on the CPU, in the first process alone.
    """
    output = Path(config.output).expanduser()
    rank, ranks = join(config.device == "cpu", config.offload)
    with watched(rank, ranks, lambda: latest_state(output)):
        return _train(config)


def _train(config: JudgeTrainingConfig) -> VLMScorer:
    values = config.model_dump(exclude={"resume"})
    # At a constant learning rate a run is the beginning of a run with more updates, and may be continued.
    may_differ = (*SHARDING_KEYS, *(("updates",) if config.schedule == "constant" else ()))
    output = check_run_directory(config.output, values, config.resume, may_differ)
    train, valid = (rankings(config, split) for split in ("train", "valid"))
    sharded = config.sharding != "none"
    accelerator = make_accelerator(config, output, sharded, cpu=config.device == "cpu")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    # Sharding moves weights to the device a layer at a time.
    module, adapted = trainable_judge(config, torch.device("cpu") if sharded else accelerator.device)
    shard_network(config, module, module.layers, accelerator, exact=[module.head])
    scorer = module.scorer
    scorer.states.at_once = sharded
    learner = JudgeLearner(module)
    with accelerator.autocast():
        freeze_unread(learner, train[0])
    objective = JudgeObjective(train, config.loss, config.tie_threshold, config.seed)
    loop = Trainer(learner, objective, config, output, accelerator)
    if accelerator.is_main_process:
        create_run_directory(output, values)
        tell(_plan(config, module, (len(train), len(valid)), accelerator))
    accelerator.wait_for_everyone()
    start_trackers(accelerator, config)
    loop.run(lambda trainer, done: _validate(trainer, learner, objective, config, valid, done))
    learner.snapshots[BEST].copy_to(module)
    if sharded:
        learned = loop.learned()
        if accelerator.is_main_process:
            module, adapted = trainable_judge(config, torch.device("cpu"))
            module.load_state_dict(learned, strict=False)
            scorer = module.scorer
    if accelerator.is_main_process or not sharded:
        if adapted is not None:
            scorer.backbone.model = adapted.merge_and_unload()
        scorer.states.forget()
        scorer.name = output.name
        scorer.eval().requires_grad_(False)
    if accelerator.is_main_process:
        scorer.save_pretrained(output)
        validations = [entry for entry in loop.history if "valid_loss" in entry]
        text = card(config, output.name, validations, (len(train), len(valid)))
        write_atomically(output / CARD_FILE, text)
        tell(f"the result is in {output}; to load it:\n    imagereward.load({str(output)!r})")
    accelerator.wait_for_everyone()
    return scorer


def trainable_judge(config: JudgeTrainingConfig, device: torch.device) -> tuple[JudgeModule, Any]:
    """(the judge before training, with the gradients of what learns; its model with LoRA, None without)."""
    scorer = starting_judge(config, device)
    adapted = make_trainable(scorer, config)
    sees = config.train == "all" or (config.lora is not None and config.lora.vision)
    return JudgeModule(scorer, sees), adapted


def starting_judge(config: JudgeTrainingConfig, device: torch.device) -> VLMScorer:
    """The judge before training, frozen: the config's model, and a head with random weights."""
    outputs = 2 if config.loss in UNCERTAIN else 1
    judge = JudgeConfig(
        config.model,
        "head",
        template_of(config.template),
        HeadConfig(config.hidden, outputs, config.dropout),
        config.pixels,
    )
    source = str(Path(config.model).expanduser())
    # Steps of learning would be rounded away in half precision, so only a frozen model is stored in it.
    dtype = DTYPES[config.precision] if config.train == "head" else torch.float32
    model, processor = open_model(source, device, dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scorer = VLMScorer(model, processor, judge)
    assert scorer.reward_head is not None
    scorer.reward_head.to(device)
    return scorer.eval().requires_grad_(False)


def make_trainable(scorer: VLMScorer, config: JudgeTrainingConfig) -> Any:
    """Turn on the gradients of what learns; returns the model with LoRA as peft's, None without LoRA."""
    adapted = None
    if config.lora is not None:
        import peft

        targets = rf".*\.({SEEING})" if config.lora.vision else f"{LANGUAGE}({LINEAR})"
        settings = peft.LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=targets)
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                adapted = peft.get_peft_model(scorer.backbone.model, settings)
        except ValueError as error:  # peft: no layer has such a name
            raise InputError(
                f"lora: {config.model} has no linear layers of known names ({error}); expected lora=null"
            ) from error
        names = [name for name, _ in adapted.named_parameters() if "lora_" in name]
        if config.lora.vision and all(re.match(LANGUAGE, name) for name in names):
            raise InputError(
                f"lora.vision=true: no layer of the image encoder of {config.model} has a known name; "
                "expected lora.vision=false"
            )
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.data = value.data.float()
    if config.train != "head":
        part = scorer.backbone.model if config.train == "all" else scorer.backbone.language_model
        part.requires_grad_(True)
    assert scorer.reward_head is not None
    scorer.reward_head.requires_grad_(True)
    if config.checkpointing:
        scorer.set_grad_checkpointing()
    return adapted


def freeze_unread(learner: JudgeLearner, prompt: RankedPrompt) -> None:
    """Freeze the weights that a prompt's scores do not depend on, such as vision layers that are not read.

    Several processes would wait for their gradients for ever.
    """
    learner.outputs([prompt]).sum().backward()
    for value in learner.module.parameters():
        if value.grad is None:
            value.requires_grad_(False)
        value.grad = None


def _validate(
    loop: Trainer,
    learner: JudgeLearner,
    objective: JudgeObjective,
    config: JudgeTrainingConfig,
    valid: Sequence[RankedPrompt],
    done: int,
) -> None:
    """Log mean loss and share of untied pairs in order on the validation set; keep the best weights.

    Each process takes a part of the prompts. With an average of the weights (`ema`), it is what is validated
    and kept.
    """
    network, average = loop.bare, learner.snapshots.get("ema")
    network.eval()
    learner.scorer.states.forget()
    rank, ranks = loop.accelerator.process_index, loop.accelerator.num_processes
    mine, sums = valid[rank::ranks], [0.0, 0.0, 0.0, 0.0]
    with average.in_place_of(network) if average else contextlib.nullcontext(), torch.no_grad():
        for start in range(0, -(-len(valid) // ranks), config.micro_batch):
            batch = mine[start : start + config.micro_batch]
            # Processes with shards compute together, also where one of them has no prompt left.
            losses, right = objective.judged(learner, batch or valid[:1])
            if not batch:
                continue
            part = [float(losses.double().sum()), len(losses), int(right.sum()), len(right)]
            sums = [before + value for before, value in zip(sums, part, strict=True)]
        total = [sum(column) for column in zip(*gather_objects(sums, ranks), strict=True)]
        loss, share = total[0] / total[1], total[2] / max(1.0, total[3])
        if not math.isfinite(loss):
            raise NonFiniteScoreError(f"the validation loss is {loss}")
        before = [entry["valid_loss"] for entry in loop.history if "valid_loss" in entry]
        if not before or loss < min(before):
            learner.snapshots[BEST] = Snapshot(network)
    learner.scorer.states.forget()
    loop.log(done, {"valid_loss": loss, "accuracy": share, "valid_pairs": int(total[1])})
    if loop.accelerator.is_main_process:
        tell(f"update {done}: validation loss {loss:.4f}, {share:.1%} of pairs in order")


def _plan(config: JudgeTrainingConfig, module: JudgeModule, prompts: tuple[int, int], accelerator) -> str:
    learns = sum(value.numel() for value in trainable_parameters(module).values())
    whole = sum(value.numel() for value in module.parameters())
    values = {
        "model": config.model,
        "data": f"{config.data}: {prompts[0]} prompts to learn from, {prompts[1]} to validate",
        "learns": f"{learns:,} of {whole:,} parameters, by {config.loss}",
        "updates": updates(config, accelerator.num_processes),
        "computes": f"in {config.precision} on {accelerator.device}",
        "output": config.output,
    }
    return facts(f"{config.objective}:", values)


def tune_judge(values: dict[str, Any], source: str) -> VLMScorer:
    """`train_judge` with a recipe's values; `source` names the recipe in error messages."""
    return train_judge(build(JudgeTrainingConfig, values, source))
