"""training_arguments: the config of a reward model's training as transformers' Trainer takes it."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from imagereward.errors import InputError
from imagereward.tuning.reward_model.config import RewardModelConfig, ScheduleConfig
from imagereward.tuning.transformers_arguments import transformers_arguments


def training_arguments(
    config: RewardModelConfig, stage: ScheduleConfig, output: Path, **more: Any
) -> TrainingArguments:
    """The TrainingArguments of a stage: the config itself for that of rankings, or its warm-up.

    output  directory for the stage's checkpoints
    more    further arguments; `config.trainer` may replace them

    Raises InputError for a batch size that the processes cannot share, a token of the hub, and for what
    transformers refuses; ImageRewardError if the processes have not found each other.
    """
    if "hub_token" in config.trainer:
        raise InputError(
            "trainer.hub_token would be written to run.json and to the card; expected the token in the "
            "environment variable HF_TOKEN"
        )
    values = {
        "output_dir": str(output),
        "num_train_epochs": stage.epochs,
        "max_steps": stage.updates,
        "per_device_train_batch_size": stage.micro_batch,
        "per_device_eval_batch_size": stage.micro_batch,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": stage.warmup_updates,
        "adam_beta2": stage.beta2,
        "weight_decay": stage.weight_decay,
        "max_grad_norm": stage.max_gradient_norm,
        "logging_steps": 10,
        "dataloader_num_workers": config.workers,
        "bf16": config.precision == "bfloat16",
        "fp16": config.precision == "float16",
        "seed": config.seed,
        **more,
        **config.trainer,
    }
    arguments = transformers_arguments(values, cpu=config.device == "cpu")
    accumulate, rest = divmod(stage.batch_size, stage.micro_batch * arguments.world_size)
    if rest or not accumulate:
        raise InputError(
            f"batch_size={stage.batch_size}: expected a multiple of micro_batch={stage.micro_batch} "
            f"times the number of devices, {arguments.world_size}"
        )
    arguments.gradient_accumulation_steps = accumulate
    return arguments
