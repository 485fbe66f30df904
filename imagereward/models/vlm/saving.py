"""save_judge: writes a judge's model, processor, settings, reward head and adapters to a directory.

`saved_head` and `add_saved_adapters` read the last two; transformers reads the model.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from imagereward.adapters.files import PREFIX, WEIGHTS_FILE, read_adapter
from imagereward.config import read_json
from imagereward.errors import CheckpointError
from imagereward.models.judge_names import JUDGE_FILE
from imagereward.models.vlm.asking.settings import HeadConfig
from imagereward.models.vlm.heads import RewardHead
from imagereward.writing import replacing

HEAD_FILE = "reward_head.safetensors"
ADAPTERS = "adapters"  # the folder with a folder for each adapter, and the key with their order


def save_judge(scorer: Any, directory: Path) -> Path:
    """Write what `load` reads to `directory`: model, processor, settings, head, adapters. Returns it.

    Raises InputError for an adapter that is off.
    """
    scorer.adapters.check_on()
    directory.mkdir(parents=True, exist_ok=True)
    with scorer.adapters.taken_off(scorer):
        scorer.backbone.model.save_pretrained(directory)
    for name in scorer.adapters:
        scorer.adapters[name].save_pretrained(directory / ADAPTERS / name)
    scorer.backbone.processor.save_pretrained(directory)
    if scorer.reward_head is not None:
        with replacing(directory / HEAD_FILE) as file:
            state = {name: value.contiguous() for name, value in scorer.reward_head.state_dict().items()}
            safetensors.torch.save_file(state, file, {"format": "pt"})
    with replacing(directory / JUDGE_FILE) as file:
        judge = replace(scorer.judge, model="")
        values = {"name": scorer.name, "judge": judge.to_dict()}
        if len(scorer.adapters):
            values[ADAPTERS] = list(scorer.adapters)
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return directory


def saved_head(directory: Path, width: int, config: HeadConfig) -> RewardHead:
    """The reward head that `save_judge` wrote. CheckpointError if there is none, or one of another shape.

    width  of the hidden states that it reads
    """
    path = directory / HEAD_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the judge is read by a reward head; expected the directory that its "
            "save_pretrained wrote, or head=HeadConfig(...) for a new one with random weights"
        )
    head = RewardHead(width, config)
    try:
        head.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} does not fit the reward head of {config}: {error}") from error
    return head


def add_saved_adapters(scorer: Any, directory: Path) -> None:
    """Put the adapters that `save_judge` wrote on the scorer. CheckpointError for one that is damaged."""
    if not (directory / JUDGE_FILE).is_file():
        return
    names = read_json(directory / JUDGE_FILE).get(ADAPTERS, [])
    if not isinstance(names, list) or not all(
        isinstance(name, str) and Path(name).name == name for name in names
    ):
        raise CheckpointError(f"{directory / JUDGE_FILE}: adapters={names!r:.100}; expected names of folders")
    for name in names:
        config, weights = read_adapter(directory / ADAPTERS / name)
        scorer.files[f"{PREFIX}{config.name}."] = (directory / ADAPTERS / name / WEIGHTS_FILE).resolve()
        scorer.adapters.add(scorer, config, scorer.token_streams(), weights)
    scorer.config = replace(scorer.config, adapters=scorer.adapters.configs)
