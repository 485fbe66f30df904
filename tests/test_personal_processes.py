"""A personal adapter taught in two processes (gloo, on CPUs) is the one that a single process teaches."""

import json
from pathlib import Path

import pytest
import torch
from conftest import small_scorer
from personal_choices import rankings, ratings, written
from safetensors.torch import load_file
from test_processes import check_gradients, launched

from imagereward.tuning import run_recipe

# In batches of four: the last batch of a part is short, and ties leave processes unequally many pairs.
FORMS = {
    "rankings, each part held out once": ("rankings", ["folds=2", "kind=loreft"]),
    "ratings, a share held out and the best epoch": ("ratings", ["folds=0", "kind=lora", "held_out=0.3"]),
}


def records(kind: str) -> list[dict]:
    if kind == "ratings":
        return ratings(11)
    found = rankings(10)
    for each in found[::3]:
        each["ranking"] = [1, 1, 2]  # two pairs instead of three
    return found


def teach(out: str, settings: list[str]) -> None:
    """In a new process: run the recipe on the files beside `out`."""
    folder = Path(out).parent
    values = {"data": folder / "choices.jsonl", "scorer": folder / "scorer", "output": out}
    given = [*(f"{name}={value}" for name, value in values.items()), *settings]
    # By plain gradient descent: AdamW makes steps of full size of what rounding leaves of a gradient of 0.
    given += ["trainer.optim=sgd", "learning_rate=0.05", "max_gradient_norm=1e6", "epochs=2", "batch_size=4"]
    run_recipe("imagereward/personal", [*given, "device=cpu", "rank=2"])


@pytest.mark.parametrize("form", FORMS)
def test_two_processes_teach_what_one_does(form, tmp_path):
    kind, settings = FORMS[form]
    written(records(kind), tmp_path)
    small_scorer("ImageReward").save_pretrained(tmp_path / "scorer")
    call = f"from test_personal_processes import teach\nteach(out, {settings!r})"
    one, two = launched(call, tmp_path)
    # Losses are in units of the base's deviation, which is small here, so rounding is a little larger.
    check_gradients(one, two, [1, 2], 1e-5)
    files = {path.name for path in two.iterdir()}
    assert files == {"README.md", "adapter.safetensors", "config.json", "run.json", "summary.json"}
    expected, found = (load_file(each / "adapter.safetensors") for each in (one, two))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4)
    alone, together = (json.loads((each / "summary.json").read_text()) for each in (one, two))
    for each in (alone, together):
        del each["seconds"], each["bytes"]
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert together[name] == (pytest.approx(value, abs=1e-5) if isinstance(value, list) else value), name
