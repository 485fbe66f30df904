"""transformers_arguments: TrainingArguments of transformers' Trainer that suit the trainings of scorers."""

from typing import Any

import torch
from transformers import TrainingArguments

from imagereward.errors import InputError
from imagereward.tuning.distributed import check_together, several_on_cpus


def transformers_arguments(values: dict[str, Any], cpu: bool) -> TrainingArguments:
    """TrainingArguments with these values, and with what every training of a scorer shares as defaults.

    cpu  whether a GPU is left alone

    Raises InputError for what transformers refuses; ImageRewardError if the processes that a launcher
    started have not found each other.
    """
    shared = {
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": cpu or several_on_cpus(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Every trainable parameter is used in every update, and the search for unused ones breaks fairscale.
        "ddp_find_unused_parameters": False,
    }
    try:
        arguments = TrainingArguments(**{**shared, **values})
    except (TypeError, ValueError) as error:
        raise InputError(f"transformers.TrainingArguments refuses the config: {error}") from error
    check_together(arguments.world_size)
    # With several devices in one process Trainer uses DataParallel, which cannot split lists of prompts.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
