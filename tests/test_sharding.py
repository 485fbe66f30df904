"""Sharded weights on gloo and CPU: results, shares of memory, checkpoints, processes that end, bad input."""

import json
import math
import re
from pathlib import Path

import pytest
import sharded_trainings
import torch
from forked import run_forked
from safetensors.torch import load_file
from sharded_trainings import Plain

from imagereward.errors import InputError
from imagereward.tuning.data.plan import UpdatePlan
from imagereward.tuning.objectives.grpo import GRPOConfig
from imagereward.tuning.objectives.refl import ReFLConfig
from imagereward.tuning.sharding import check_sharded, make_mesh, shard
from imagereward.tuning.trainer.run_directory import checkpoints, updates_of

EVERY = [(name, lora) for name in sharded_trainings.TRAININGS for lora in (False, True)]
SOME = [("refl", False), ("grpo", True), ("nft", True), ("dpo_online", False)]
FULL, HYBRID = {"sharding": "full"}, {"sharding": "hybrid", "sharding_group": 2}


def run(function, *arguments, log, ranks, codes=None):
    ended = run_forked(function, *arguments, log=log, ranks=ranks)
    if codes is None:
        assert ended.codes == [0] * ranks, ended.output
    return ended


@pytest.fixture(scope="module")
def alone(tmp_path_factory, request):
    """Every training of this module's tests that run, in one process, unsharded."""
    directory = tmp_path_factory.mktemp("alone")
    cases = EVERY if any(item.get_closest_marker("long") for item in request.session.items) else SOME
    run(sharded_trainings.train_each, cases, directory, {}, log=directory / "log", ranks=1)
    return directory


def learned(output):
    """The result's weights by name: of the adapters, or of the network."""
    (file,) = [
        *output.glob("pytorch_lora_weights.safetensors"),
        *output.glob("unet/*.safetensors"),
        *output.glob("transformer/*.safetensors"),
    ]
    return load_file(file)


def away(those, these):
    """Norm of the difference / norm, over all tensors of two lists."""
    norm = math.sqrt(sum(float(a.double().square().sum()) for a in those))
    return (
        math.sqrt(sum(float((a - b).double().square().sum()) for a, b in zip(those, these, strict=True)))
        / norm
    )


def check_equal(alone, several, cases):
    for name, lora in cases:
        case = f"{name}-{'lora' if lora else 'full'}"
        one, two = alone / case, several / case
        gradients = [torch.load(f"{each}.gradients.pt", weights_only=True) for each in (one, two)]
        assert away(*gradients) < 1e-6, case
        a, b = learned(one), learned(two)
        assert a.keys() == b.keys()
        assert away(list(a.values()), list(b.values())) < 1e-6, case
        first, second = (json.loads((each / "history.json").read_text()) for each in (one, two))
        for before, after in zip(first, second, strict=True):
            # The distance of weights that just moved apart is a difference of nearly equal numbers.
            skipped = {"old_distance", "reference_distance", "kl", "kl_share", "distance"}
            kept = before.keys() - skipped
            assert {key: after[key] for key in kept} == pytest.approx(
                {key: before[key] for key in kept}, rel=1e-5, abs=1e-6
            ), case


@pytest.mark.parametrize(
    ("more", "ranks", "cases"),
    [
        (FULL, 2, [("refl", False), ("grpo", True)]),
        ({"sharding": "zero2"}, 2, [("nft", True)]),
        (HYBRID, 4, [("dpo_online", False)]),
    ],
)
def test_sharded_trainings_learn_what_one_process_learns(more, ranks, cases, alone, tmp_path):
    """Gradients, weights and logs, with averages and references on."""
    run(sharded_trainings.train_each, cases, tmp_path, more, log=tmp_path / "log", ranks=ranks)
    check_equal(alone, tmp_path, cases)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("mode", ["zero2", "full", "hybrid"])
def test_every_objective_under_every_sharding(mode, ranks, alone, tmp_path):
    more = {"sharding": mode, **({"sharding_group": 2} if mode == "hybrid" else {})}
    run(sharded_trainings.train_each, EVERY, tmp_path, more, log=tmp_path / "log", ranks=ranks)
    check_equal(alone, tmp_path, EVERY)


@pytest.mark.parametrize(
    ("more", "ranks", "share"), [(FULL, 2, 2), pytest.param(HYBRID, 4, 2, marks=pytest.mark.long)]
)
def test_a_process_holds_its_share_of_weights_gradients_and_moments(more, ranks, share, tmp_path):
    run(sharded_trainings.count_bytes, tmp_path, more, log=tmp_path / "log", ranks=ranks)
    for rank in range(ranks):
        held = json.loads((tmp_path / f"bytes-{rank}.json").read_text())
        # Every tensor is padded to a multiple of the processes.
        most = held["all"] / share * 1.1
        assert 0 < held["weights"] <= most
        assert 0 < held["gradients"] <= most
        assert 0 < held["moments"] <= 2 * most


def test_bfloat16_over_a_frozen_base_and_offloaded_shards_train(tmp_path):
    """The base is in bfloat16 and the adapters in float32, in one block."""
    of_rank = [{"precision": "bfloat16", "offload": True, "lora": sharded_trainings.LORA, **FULL}] * 2
    run(sharded_trainings.trained_in_each, tmp_path, "nft", of_rank, log=tmp_path / "log", ranks=2)
    found = learned(tmp_path / "out")
    assert all(value.isfinite().all() for value in found.values())
    assert any(value.any() for name, value in found.items() if "lora_B" in name)  # 0 at the start


# Checkpoints.


def resumed(directory, before, after, updates=4, name="grpo"):
    """The output of a run of 2 updates by `before` = (processes, settings), continued by `after`."""
    for (ranks, more), total, resume in ((before, 2, False), (after, updates, True)):
        of_rank = [{"out": "out", **FEW, "updates": total, "resume": resume, **more}] * ranks
        arguments = (directory, name, of_rank)
        run(sharded_trainings.trained_in_each, *arguments, log=directory / f"log-{total}", ranks=ranks)
    return directory / "out"


FEW = {"save_every": 2, "ema": 0.9}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted")
    of_rank = [{"updates": 4, **FEW, **FULL}] * 2
    run(sharded_trainings.trained_in_each, directory, "grpo", of_rank, log=directory / "log", ranks=2)
    return learned(directory / "out")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, FULL), (2, {**FULL, "save_in_background": True})),
        ((2, {"sharding": "zero2", "save_in_background": True}), (2, FULL)),
    ],
)
def test_a_run_resumed_by_as_many_processes_ends_bit_for_bit_equal(before, after, uninterrupted, tmp_path):
    found = learned(resumed(tmp_path, before, after))
    assert all(torch.equal(found[name], value) for name, value in uninterrupted.items())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, FULL), (1, FULL)),
        ((1, FULL), (2, FULL)),
        pytest.param((2, FULL), (4, HYBRID), marks=pytest.mark.long),
        ((2, FULL), (1, {})),
        ((1, {}), (2, FULL)),
    ],
)
def test_a_run_resumed_by_other_numbers_of_processes_ends_equal(before, after, uninterrupted, tmp_path):
    found = learned(resumed(tmp_path, before, after))
    assert away(list(uninterrupted.values()), [found[name] for name in uninterrupted]) < 1e-6


def test_a_checkpoint_of_another_model_is_refused_by_all(tmp_path):
    of_rank = [{**FEW, "updates": 2, **FULL}] * 2
    run(sharded_trainings.trained_in_each, tmp_path, "grpo", of_rank, log=tmp_path / "log", ranks=2)
    files = sorted((tmp_path / "out" / "checkpoint-2" / "shards").iterdir())
    assert len(files) == 2  # one of each process
    files[0].write_bytes(b"damaged")
    again = [{**FEW, "updates": 4, "resume": True, **FULL}] * 2
    log = tmp_path / "log2"
    ended = run(sharded_trainings.trained_in_each, tmp_path, "grpo", again, log=log, ranks=2, codes=())
    assert ended.codes == [1, 1]
    for rank in range(2):
        assert "checkpoint-2 cannot be read as a checkpoint" in Path(f"{log}.{rank}").read_text()


@pytest.mark.parametrize("seen", [True, False])
def test_a_checkpoint_written_in_the_background_is_there_before_the_next_save(seen, tmp_path):
    """As soon as it is whole, and if the training fails while it is written."""
    function = sharded_trainings.failing_after_a_checkpoint
    ended = run(function, tmp_path, seen, log=tmp_path / "log", ranks=2, codes=())
    assert ended.codes == [1, 1]
    assert "the update failed" in Path(f"{tmp_path / 'log'}.0").read_text()
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint*")] == ["checkpoint-2"]


# Processes that end.


MOMENTS = [(1, 0.5), *(pytest.param(i % 2, i * 0.37, marks=pytest.mark.long) for i in range(10))]


@pytest.mark.parametrize(("victim", "after"), MOMENTS)
def test_a_killed_process_ends_the_other_with_its_name_and_the_run_can_go_on(victim, after, tmp_path):
    """At moments of drawing, learning and saving; a checkpoint is written after every update."""
    of_run = {"save_every": 1, "ema": 0.9, "keep_checkpoints": 3, **FULL}
    log = tmp_path / "log"
    arguments = (tmp_path, victim, after, {**of_run, "updates": 400})
    ended = run(sharded_trainings.killed, *arguments, log=log, ranks=2, codes=())
    assert ended.codes[victim] == -9
    assert ended.codes[1 - victim] == 1
    said = Path(f"{log}.{1 - victim}").read_text()
    assert f"ProcessLostError: process {victim} of 2" in said
    assert "the last checkpoint is" in said
    total = updates_of(checkpoints(tmp_path / "out")[-1]) + 1
    for out, resume in (("out", True), ("undisturbed", False)):
        of_rank = [{**of_run, "out": out, "updates": total, "resume": resume}] * 2
        arguments = (tmp_path, "grpo", of_rank)
        run(sharded_trainings.trained_in_each, *arguments, log=tmp_path / f"log-{out}", ranks=2)
    found, expected = learned(tmp_path / "out"), learned(tmp_path / "undisturbed")
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("of_rank", "message"),
    [
        # The second process alone lacks a tracker, sees another directory, or has a full disk.
        ([{}, {"trackers": ["comet_ml"]}], "process 1 of 2 .* ended with InputError"),
        ([{}, {"out": "elsewhere"}], "not the same directory for all of them|could not be written"),
        ([{}, {"disk": 20_000}], "could not be written"),
    ],
)
def test_an_error_of_one_process_is_told_by_all(of_rank, message, tmp_path):
    few = {**FEW, "updates": 2, **FULL}
    log, of_rank = tmp_path / "log", [{**few, **each} for each in of_rank]
    ended = run(sharded_trainings.trained_in_each, tmp_path, "grpo", of_rank, log=log, ranks=2, codes=())
    assert ended.codes == [1, 1], ended.output
    first = Path(f"{log}.0").read_text()
    assert re.search(message, first), first


# Bad input.


def config(kind=GRPOConfig, **values):
    needed = {"noise": {"kind": "flow_grpo", "level": 0.7}, "reward": "x"} if kind is GRPOConfig else {}
    return kind(model="m", output="o", prompts="p", **needed, **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharding": "full", "quantize": True, "lora": {"rank": 2}}, "4 bits have scales of their own"),
        ({"sharding": "full", "optimizer": "adamw-8bit"}, "bitsandbytes does not know shards"),
        ({"sharding": "zero2", "precision": "float16"}, "disagree about the loss's scale"),
        ({"sharding_group": 2}, "for sharded weights"),
        ({"sharding": "full", "sharding_group": 2}, "it is for sharding='hybrid'"),
        ({"offload": True}, "for sharded weights"),
        ({"save_in_background": True}, "for sharded weights"),
        ({"sharding": "half"}, "'none', 'zero2', 'full' or 'hybrid'"),
    ],
)
def test_settings_that_sharding_cannot_have_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


def test_shares_of_a_batch_must_be_equal():
    with pytest.raises(InputError, match="an update has 3 parts for 2 processes; expected a multiple of 2"):
        config(batch_size=6, micro_batch=2, group=3).check_processes(2, sharded=True)
    config(batch_size=6, micro_batch=2, group=3).check_processes(2, sharded=False)
    plan = UpdatePlan(0, 24, 4, 0, 2, equal=True).in_groups(8, whole=True)
    with pytest.raises(InputError, match=r"would compute \[4, 2\] parts; sharded weights need equal numbers"):
        _ = plan.mine
    assert len(UpdatePlan(0, 32, 4, 0, 2, equal=True).in_groups(8, whole=True).mine) == 4


def test_refl_with_a_reference_over_several_steps_is_refused():
    several = config(ReFLConfig, reference_weight=0.1, gradient={"mode": "last", "count": 2})
    with pytest.raises(InputError, match="the distance to the reference is taken over one step"):
        several.check_processes(2, sharded=True)


def test_a_group_that_does_not_divide_the_processes_is_refused():
    with pytest.raises(InputError, match="sharding_group=3: expected a number that divides the 4 processes"):
        make_mesh("hybrid", 3, 4, torch.device("cpu"))


def test_a_network_without_blocks_and_one_that_stayed_whole_are_refused():
    arguments = {"group": 1, "ranks": 1, "device": torch.device("cpu")}
    with pytest.raises(InputError, match=r"Plain has none of the blocks \['FluxTransformerBlock'\]"):
        shard(Plain(), ["FluxTransformerBlock"], "full", **arguments)
    with pytest.raises(
        Exception, match=r"2 of the network's weights are not in shards, such as layer\.weight"
    ):
        check_sharded(Plain())
