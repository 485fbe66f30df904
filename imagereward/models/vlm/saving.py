"""save_judge: writes a judge's model, processor, settings and reward head to a directory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch

from imagereward.models.judge_names import JUDGE_FILE
from imagereward.writing import replacing

HEAD_FILE = "reward_head.safetensors"


def save_judge(scorer: Any, directory: Path) -> Path:
    """Write model, processor, judge.json and the head to `directory`, which `load` reads; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    scorer.backbone.model.save_pretrained(directory)
    scorer.backbone.processor.save_pretrained(directory)
    if scorer.reward_head is not None:
        with replacing(directory / HEAD_FILE) as file:
            state = {name: value.contiguous() for name, value in scorer.reward_head.state_dict().items()}
            safetensors.torch.save_file(state, file, {"format": "pt"})
    with replacing(directory / JUDGE_FILE) as file:
        judge = replace(scorer.judge, model="")
        text = json.dumps({"name": scorer.name, "judge": judge.to_dict()}, indent=2)
        file.write_text(text + "\n", encoding="utf-8")
    return directory
