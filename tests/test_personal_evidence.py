"""What a personal adapter's figures rest on: what is held out, ties, few choices, and what else may learn."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import small_scorer
from personal_choices import picture, rankings, ratings
from test_personal import QUICK

import imagereward as RM
from imagereward.config import AdapterConfig
from imagereward.errors import InputError
from imagereward.tuning.personal.choices import read_choices


@pytest.mark.parametrize("kind", ["loreft", "lora"])
def test_nothing_but_the_new_adapter_learns(kind):
    scorer = small_scorer("ImageReward")
    other = scorer.add_adapter(AdapterConfig("direft", "other"))
    other.let_learn()
    scorer.mlp.requires_grad_(True)
    before = {name: value.clone() for name, value in scorer.state_dict().items()}
    learning = {name for name, value in scorer.named_parameters() if value.requires_grad}
    RM.personalise(scorer, rankings(8), kind=kind, learning_rate=0.1, weight_decay=0.1, **QUICK)
    scorer.remove_adapter("mine")
    for name, value in scorer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name for name, value in scorer.named_parameters() if value.requires_grad} == learning


def test_published_layouts_and_tables_of_text_keep_subsets_and_margins(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture(0.5, rng).save(tmp_path / f"{name}.png")
    record = {"prompt": "x", "image_path": ["a.png", "b.png"], "human_preference": [0, 1]}
    extra = {"subset": "photos", "margin": 0.5}
    (tmp_path / "train.json").write_text(json.dumps([{**record, **extra}, record]))
    first, second = read_choices(tmp_path / "train.json").items
    assert (first.decided, first.subset, first.margin) == ([(1, 0)], "photos", 0.5)
    assert (second.subset, second.margin) == ("", 0)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "generations", "ranking", "subset", "margin"])
        table.writerow(["x", '["a.png", "b.png"]', "[2, 1]", "photos", "0.5"])
    assert read_choices(tmp_path / "table.csv").items[0].decided == [(1, 0)]
    (tmp_path / "bad.csv").write_text("prompt,images,ranking\nx,a.png b.png,2 1\n")
    with pytest.raises(InputError, match=r"bad\.csv.*images: expected a list .* in a table of text as JSON"):
        read_choices(tmp_path / "bad.csv")
    alone = [
        {"prompt_id": 1, "prompt": "x", "image_path": f"{name}.png", "rank": rank, "subset": "photos"}
        for rank, name in enumerate("ab")
    ]
    (tmp_path / "alone.jsonl").write_text("".join(json.dumps(each) + "\n" for each in alone))
    with pytest.raises(InputError, match="a record for each image, and a column subset or margin"):
        read_choices(tmp_path / "alone.jsonl")
    with pytest.raises(InputError, match=r"choices\[0\], margin: ratings have none"):
        read_choices([{**each, "margin": 1} for each in ratings(4)])
    image = picture(0.5, rng)
    with pytest.raises(InputError, match=r"choices\[0\]: images\[0\] and images\[2\] are the same image"):
        read_choices([{"prompt": "x", "images": [image, picture(0, rng), image], "ranking": [1, 2, 3]}])
