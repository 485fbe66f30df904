"""Sharded weights on gloo and CPU: results, shares of memory, checkpoints, and processes that end."""

import json
import math
import re
from pathlib import Path

import pytest
import sharded_trainings
import torch
from forked import run_forked
from safetensors.torch import load_file

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
    ("cases", "ranks", "share"),
    [
        ([FULL, {"sharding": "zero2"}, {**FULL, "lora": sharded_trainings.LORA}], 2, 2),
        pytest.param([HYBRID], 4, 2, marks=pytest.mark.long),
    ],
)
def test_a_process_holds_its_share_of_all_and_a_block_while_it_computes(cases, ranks, share, tmp_path):
    """Of weights, a frozen base among them, of gradients, moments, the average and the reference."""
    run(sharded_trainings.count_bytes, tmp_path, cases, log=tmp_path / "log", ranks=ranks)
    for rank in range(ranks):
        every = json.loads((tmp_path / f"bytes-{rank}.json").read_text())
        for case, held in zip(cases, every, strict=True):
            # Every tensor is padded to a multiple of the processes.
            most = held["learns"] / share * 1.1
            assert 0 < held["weights"] <= held["all"] / share * 1.1
            assert 0 < held["gradients"] <= most
            assert 0 < held["moments"] <= 2 * most
            assert len(held["snapshots"]) == 2
            assert all(0 < each <= most for each in held["snapshots"])
            whole = held["all"] if case["sharding"] == "zero2" else held["outside"] + held["block"]
            assert held["block"] <= held["gathered"] <= whole
            assert (held["learns"] < held["all"] / 4) == ("lora" in case)


def test_the_first_process_alone_keeps_and_returns_unrounded_frozen_weights(tmp_path):
    cases = [{**FULL, "precision": "bfloat16", "updates": 1}]
    run(sharded_trainings.count_bytes, tmp_path, cases, log=tmp_path / "log", ranks=2)
    found = [json.loads((tmp_path / f"bytes-{rank}.json").read_text())[0]["encoder"] for rank in range(2)]
    assert found == ["torch.float32", "torch.bfloat16"]


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
    return directory / "out"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, FULL), (2, {**FULL, "save_in_background": True})),
        ((2, {"sharding": "zero2", "save_in_background": True}), (2, FULL)),
    ],
)
def test_a_run_resumed_by_as_many_processes_ends_bit_for_bit_equal(before, after, uninterrupted, tmp_path):
    check_same(learned(resumed(tmp_path, before, after)), learned(uninterrupted))


def check_same(found, expected):
    assert all(torch.equal(found[name], value) for name, value in expected.items())


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
    found, expected = learned(resumed(tmp_path, before, after)), learned(uninterrupted)
    assert away(list(expected.values()), [found[name] for name in expected]) < 1e-6


def test_processes_that_see_other_checkpoints_go_on_from_none(uninterrupted):
    """The second alone sees an empty directory; the first must not wait for it when it reads shards."""
    of_rank = [{"out": out, "updates": 6, "resume": True, **FEW, **FULL} for out in ("out", "elsewhere")]
    directory, log = uninterrupted.parent, uninterrupted.parent / "log-elsewhere"
    ended = run(sharded_trainings.trained_in_each, directory, "grpo", of_rank, log=log, ranks=2, codes=())
    assert ended.codes == [1, 1], ended.output
    for rank in range(2):
        assert "would go on from checkpoint-4 and the start" in Path(f"{log}.{rank}").read_text()


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


MOMENTS = [None, *(pytest.param(number, marks=pytest.mark.long) for number in range(10))]


@pytest.mark.parametrize("number", MOMENTS)
def test_a_killed_process_ends_the_other_with_its_name_and_the_run_can_go_on(number, chance, tmp_path):
    """At random moments of drawing, learning and saving; a checkpoint is written after every update."""
    victim, after, background = 1, 0.5, False
    for _ in range(0 if number is None else number + 1):  # so that one seed gives ten moments
        victim, after, background = chance.randrange(2), chance.uniform(0, 4), chance.random() < 0.5
    of_run = {"save_every": 1, "ema": 0.9, "keep_checkpoints": 3, "save_in_background": background, **FULL}
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
    check_same(learned(tmp_path / "out"), learned(tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("victim", "phase", "last"),
    [
        (1, "write", 1),
        pytest.param(0, "rename", 1, marks=pytest.mark.long),
        pytest.param(0, "prune", 2, marks=pytest.mark.long),
    ],
)
def test_a_kill_at_any_phase_of_saving_leaves_a_checkpoint(victim, phase, last, uninterrupted, tmp_path):
    """While a thread writes, between the last file and the new name, and while the one before is removed."""
    saving = {"save_every": 1, "keep_checkpoints": 1, "save_in_background": True}
    of_run = {"updates": 4, "ema": 0.9, **saving, **FULL}
    arguments = (tmp_path, victim, phase, of_run)
    ended = run(sharded_trainings.killed_while_saving, *arguments, log=tmp_path / "log", ranks=2, codes=())
    assert ended.codes[victim] == -9, ended.output
    assert ended.codes[1 - victim] == 1
    assert updates_of(checkpoints(tmp_path / "out")[-1]) == last
    again = (tmp_path, "grpo", [{**of_run, "resume": True}] * 2)
    run(sharded_trainings.trained_in_each, *again, log=tmp_path / "log-again", ranks=2)
    check_same(learned(tmp_path / "out"), learned(uninterrupted))
    assert [path.name for path in (tmp_path / "out").glob("*checkpoint*")] == ["checkpoint-4"]


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
