"""The commands of docs/sharding.md that two processors can run, as they are written."""

import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.lib.full_size import sd35_large
from benchmarks.pages.memory_tables import CARDS, RECIPES, fits_sharded
from imagereward.tuning.config import build
from imagereward.tuning.objectives import config_class
from imagereward.tuning.recipe import read_recipe

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/sharding.md").read_text()


@pytest.mark.slow  # three programs that import torch, two of them at once
def test_the_first_example_trains_in_two_processes_and_goes_on_in_one(tmp_path):
    (commands,) = re.findall(r"To see it work .*?```bash\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        ["bash", "-e", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    output = tmp_path / "tuned-sharded"
    assert len(list((output / "checkpoint-2" / "shards").iterdir())) == 2  # one file of each process
    assert not (output / "checkpoint-3" / "shards").exists()
    assert (output / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def commands(text):
    """(what learns, number of cards, sharding, command) of every cell of the table of fewest cards."""
    head, _, *rows = re.search(r"(\| model \| what learns \| cards of .*?)\n\n", text, re.DOTALL)[
        1
    ].splitlines()
    assert head.endswith("| command |")
    for row in rows:
        _, learns, *found, command = (cell.strip(" `") for cell in row.strip("|").split(" | "))
        assert len(found) == len(CARDS)
        for number, sharding in (cell.split(", ") if ", " in cell else (cell, "none") for cell in found):
            if number.isdecimal():
                yield learns, int(number), sharding, command


def any_model_on_eight_cards():
    """The tables as if every model took eight cards in full shards, those of the results file or not."""
    none, shares = {"none": 1000.0, "zero2": {"8": 1000.0}}, {"full": {"8": 20.0}}
    rows = [
        {"model": f"{model}, 1024 px", "learns": learns, **none, **shares}
        for model, learns in itertools.product(RECIPES, ("LoRA", "all"))
    ]
    return fits_sharded({"rows": rows})


@pytest.mark.parametrize("text", [PAGE, any_model_on_eight_cards()], ids=["the page", "eight cards"])
def test_the_commands_of_the_table_are_settings_that_can_be_trained(text):
    found = list(commands(text))
    assert len(found) > 40
    for learns, number, sharding, command in found:
        words = command.replace("MODE", sharding).replace("=N", f"={number}").split()
        if number > 1:
            assert words[:4] == ["torchrun", "--nproc-per-node", "N", "train/refl.py"]
        recipe = next(word for word in words if "/" in word and not word.endswith(".py"))
        values = read_recipe(recipe, [word for word in words if "=" in word])
        config = build(config_class(values["objective"]), values)
        config.check_processes(number, sharding != "none")
        assert config.sharding == sharding
        assert (config.lora is None) == (learns == "all")
        assert (config.precision, config.micro_batch, config.text_cache) == ("bfloat16", 1, "cache")


def test_the_largest_stable_diffusion_has_the_released_size():
    """Its two files of weights in bfloat16 have 9.99 and 6.31 GB, with the table of positions."""
    with torch.device("meta"):
        network = sd35_large().transformer
    assert 2 * sum(value.numel() for value in network.state_dict().values()) == pytest.approx(
        16.3e9, rel=1e-3
    )


def launched(text):
    """(processes, recipe, its key=value words) of every command of the page that starts several processes."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for name, value in re.findall(r'^(\w+)="(.*)"$', block, re.MULTILINE):
            block = block.replace(f"${name}", value)
        for line in block.replace("\\\n", " ").replace('"$RESUME"', "false").splitlines():
            count = re.search(r"--(?:nproc-per-node|num_processes) (\d+)", line)
            command = re.search(r"(?:train/\w+\.py|imagereward tune) (\S+) ([^#'&]*)", line)
            if count and command:
                machines = 2 if "--nnodes" in line else 1
                yield machines * int(count[1]), command[1], shlex.split(command[2])


@pytest.mark.parametrize("case", list(launched(PAGE)), ids=lambda case: f"{case[1]} {' '.join(case[2][:2])}")
def test_the_other_commands_are_settings_that_several_processes_can_train(case):
    number, recipe, words = case
    values = read_recipe(recipe, words)
    config = build(config_class(values["objective"]), values)
    config.check_processes(number, config.sharding != "none")


def test_the_other_commands_are_found():
    assert len(list(launched(PAGE))) == 9
