"""Training in two processes (gloo, on CPUs): each does its part, and together what one does alone."""

import json
import os
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_grpo
import test_refl
import test_samples
import torch
from accelerate import PartialState
from forked import run_forked
from pipelines import PROMPTS
from test_refl import brightness, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

from imagereward.errors import ImageRewardError
from imagereward.tuning.sharding import whole
from imagereward.tuning.trainer import accelerate_setup
from imagereward.tuning.trainer.accelerate_setup import join, make_accelerator
from imagereward.tuning.trainer.trainer import Trainer
from imagereward.tuning.trainer_config import ShardedTrainerConfig, TrainerConfig


def only_odd_ones(pixels, prompts):
    """Rewards of one prompt are all the same, so that processes have unequally much to do."""
    return brightness(pixels, prompts) * torch.tensor([prompt != PROMPTS[0] for prompt in prompts])


def train(call, out):
    """In a new process: run the Python text `call`, which trains, and write what the checks below read.

    These are the gradients of every step of the optimizer, and the number of images that `reward` scored with
    a gradient. The text finds `out`, `reward`, and the modules of tests that it names.
    """
    steps, count, first = 0, 0, os.environ.get("RANK", "0") == "0"

    def keep(optimizer, *_):
        nonlocal steps
        steps += 1
        gradients = [whole(p.grad) for group in optimizer.param_groups for p in group["params"]]
        if first:
            torch.save(gradients, f"{out}.gradients-{steps}.pt")

    def counted(pixels, prompts):
        nonlocal count
        count += len(prompts) * pixels.requires_grad
        return brightness(pixels, prompts)

    register_optimizer_step_pre_hook(keep)
    names = (
        "test_grpo",
        "test_group_rewards",
        "test_judge_resume",
        "test_penalties",
        "test_processes",
        "test_refl",
        "test_samples",
    )
    modules = {name: import_module(name) for name in names if name in call}
    exec(call, {**modules, "out": str(out), "reward": counted})
    Path(f"{out}.scored-{os.environ.get('RANK', '0')}").write_text(str(count))


def launched(call, directory):
    """The output directories of one process and of two that run the Python text `call`; see `train`."""
    for ranks, output in ((1, "one"), (2, "two")):
        log = directory / f"{output}.log"
        ended = run_forked(train, call, directory / output, log=log, ranks=ranks)
        assert ended.codes == [0] * ranks, ended.output
    return directory / "one", directory / "two"


def scored(output):
    """Images that each process scored with a gradient, by rank; a file each: printed lines interleave."""
    return [int(path.read_text()) for path in sorted(output.parent.glob(f"{output.name}.scored-*"))]


def check_equal(one, two, steps):
    """The gradients of these steps of the optimizer, and all that was logged."""
    check_gradients(one, two, steps)
    check_logs(one, two)


def check_gradients(one, two, steps, most=1e-6):
    for step in steps:
        of_one, of_two = (torch.load(f"{each}.gradients-{step}.pt", weights_only=True) for each in (one, two))
        norm = torch.stack([gradient.norm() for gradient in of_one]).norm()
        away = torch.stack([(a - b).norm() for a, b in zip(of_one, of_two, strict=True)]).norm()
        assert norm > 0
        assert away / norm < most


def check_logs(one, two):
    first, second = (json.loads((each / "history.json").read_text()) for each in (one, two))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_refl_does_half_of_the_work_in_each(tmp_path):
    call = "test_refl.run(out, reward=reward, updates=4, save_every=1, max_gradient_norm=1e6)"
    one, two = launched(call, tmp_path)
    # After one image to see whether the reward has a gradient.
    assert scored(one) == [1 + 4 * 4]
    assert scored(two) == [1 + 4 * 2, 1 + 4 * 2]
    check_equal(one, two, [1])
    assert (two / "model_index.json").is_file()
    for name, value in weights(two).items():
        torch.testing.assert_close(weights(one)[name], value, atol=1e-4, rtol=1e-3)


def test_alignprop_takes_unequal_steps_beside_pairs_that_one_alone_has(tmp_path):
    call = """test_refl.run(out, updates=2, max_gradient_norm=1e6, gradient={"mode": "suffix"},
        lora={"rank": 2},
        pretraining={"data": "shapes", "pairs": 4, "weight": 0.5, "batch_size": 2})"""
    one, two = launched(call, tmp_path)
    check_equal(one, two, [1])


@pytest.mark.parametrize("more", ["", 'lora={"rank": 2}, kl={"form": "true", "beta": 0.1}, guard=True'])
def test_grpo_with_unequally_much_to_learn(more, tmp_path):
    call = f"""test_grpo.run(out, reward=test_processes.only_odd_ones, updates=1, batch_size=10,
        micro_batch=2, max_gradient_norm=1e6, optimizer_steps=2, window={{"size": 2}}, {more})"""
    one, two = launched(call, tmp_path)
    check_equal(one, two, [1])


def test_objectives_on_clean_samples_with_unequally_much_to_learn(tmp_path):
    """Each in turn; one process has no sample to learn from in a step, and takes part without a share."""
    call = f"""
for objective in {test_samples.OBJECTIVES}:
    test_samples.run(objective, f"{{out}}-{{objective}}", reward=test_processes.only_odd_ones, updates=1,
        batch_size=8, micro_batch=2, max_gradient_norm=1e6, optimizer_steps=2)
"""
    one, two = launched(call, tmp_path)
    check_gradients(one, two, range(1, 2 * len(test_samples.OBJECTIVES), 2))  # of each, the first of two
    for objective in test_samples.OBJECTIVES:
        check_logs(tmp_path / f"one-{objective}", tmp_path / f"two-{objective}")


def test_an_update_in_which_nothing_is_learned_is_no_error(tmp_path):
    test_grpo.run(tmp_path / "out", reward=test_grpo.constant, updates=1, batch_size=8, micro_batch=2)
    assert (tmp_path / "out" / "model_index.json").is_file()


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    PartialState()  # alone, as accelerate is where it overlooks the launcher
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImageRewardError, match=r"2 processes were launched .* but 1 found each other"):
        test_refl.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_processes_than_parts_of_an_update_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "imagereward.tuning.trainer.accelerate_setup.Accelerator",
        lambda **_: SimpleNamespace(num_processes=3, distributed_type="NO", log_with=[]),
    )
    with pytest.raises(ImageRewardError, match="2 micro-batches for 3 processes; expected at least 3"):
        make_accelerator(TrainerConfig(batch_size=4, micro_batch=2), tmp_path)


def test_offloaded_weights_get_a_group_that_reaches_both_memories(tmp_path, monkeypatch):
    """As a GPU would be used: tensors in its memory by NCCL, those in the host's memory by gloo."""
    cuda, asked = torch.device("cuda:0"), []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: cuda)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: asked.append(backend))
    alone = SimpleNamespace(num_processes=1, process_index=0)
    monkeypatch.setattr(
        accelerate_setup, "PartialState", lambda **named: asked.append(named.get("backend")) or alone
    )
    of_gpu = {"num_processes": 1, "distributed_type": "NO", "log_with": [], "device": cuda}
    monkeypatch.setattr(accelerate_setup, "Accelerator", lambda **_: SimpleNamespace(**of_gpu))
    for offload in (True, False):
        config = ShardedTrainerConfig(sharding="full", offload=offload)
        monkeypatch.delenv("LOCAL_RANK", raising=False)
        make_accelerator(config, tmp_path, sharding=True)
        monkeypatch.setenv("LOCAL_RANK", "0")
        join(offload=offload)
    assert asked == [None, "cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl", None, "nccl", None]


def test_an_infinite_gradient_is_forgiven_while_its_scale_can_fall():
    for scale, forgiven in ((2.0**16, True), (1.0, True), (0.5, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loop = SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler))
        scaler.scale(torch.ones(()))  # where it is set up
        assert Trainer._scale_can_fall(loop) == forgiven
