"""A judge's training that is stopped and resumed, or shared by two processes, is the one that was not."""

import json
from functools import partial

import pytest
import torch
from forked import run_forked
from safetensors.torch import load_file
from test_judge_training import overrides, train, validations
from test_processes import check_gradients, check_logs, launched

import imagereward as RM
from imagereward.errors import ImageRewardError, InputError, NonFiniteLossError
from imagereward.tuning import run_recipe
from imagereward.tuning.judges.config import JudgeTrainingConfig
from imagereward.tuning.judges.objective import JudgeObjective
from imagereward.tuning.trainer.run_directory import checkpoints

# Six updates in which the best validation is not the last: the step is too large for it.
SHORT = {
    "updates": 6,
    "evaluate_every": 1,
    "save_every": 2,
    "schedule": "cosine",
    "dropout": 0.3,
    "learning_rate": 1e-2,
}
HEAD = {"train": "head", "lora": "{ rank = 2, vision = true }"}
RESULT = ("model.safetensors", "reward_head.safetensors", "README.md", "judge.json", "history.json")


class Stop(Exception):
    """What a test stops a run by."""


@pytest.mark.parametrize("changes", [{"ema": 0.5}, HEAD], ids=["all weights, averaged", "low rank"])
def test_a_run_that_was_stopped_and_resumed_ends_as_one_that_was_not(reds, tiny_vlm, monkeypatch, changes):
    output = reds / "out"
    train(reds, tiny_vlm, **SHORT, **changes)
    whole = {name: (output / name).read_bytes() for name in RESULT}
    output.rename(reds / "whole")
    original, calls = JudgeObjective.loss, 0

    def failing(self, *arguments):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise Stop
        return original(self, *arguments)

    monkeypatch.setattr(JudgeObjective, "loss", failing)
    with pytest.raises(Stop):
        train(reds, tiny_vlm, **SHORT, **changes)
    monkeypatch.undo()
    assert checkpoints(output)[-1].name == "checkpoint-4"
    with pytest.raises(InputError, match="resume=true"):
        train(reds, tiny_vlm, **SHORT, **changes)
    with pytest.raises(InputError, match=r"tie_threshold was 0\.5, is 0\.1"):
        train(reds, tiny_vlm, **SHORT, **changes, tie_threshold=0.1, resume="true")
    train(reds, tiny_vlm, **SHORT, **changes, resume="true")
    for name, data in whole.items():
        assert (output / name).read_bytes() == data, name


def test_what_is_saved_is_the_best_validation_even_before_a_stop(reds, tiny_vlm):
    steps = {"learning_rate": 0.3, "warmup_updates": 0, "evaluate_every": 1, "save_every": 1}
    train(reds, tiny_vlm, **steps, updates=2)
    first = json.loads((reds / "out/history.json").read_text())
    trained = train(reds, tiny_vlm, **steps, updates=3, resume="true")  # a constant rate: it may go on
    history = json.loads((reds / "out/history.json").read_text())
    assert history[: len(first)] == first
    best = min(validations(history), key=lambda entry: entry["valid_loss"])["update"]
    assert 0 < best < 3
    expected = load_file(reds / f"out/checkpoint-{best}/weights/learned.safetensors")
    for part, prefix in ((trained.backbone.model.model, "model"), (trained.reward_head, "head")):
        for name, value in part.named_parameters():
            assert torch.equal(value, expected.pop(f"{prefix}.{name}")), name
    assert not expected


PROCESSES = {
    "updates": 2,
    "batch_size": 5,  # so that one process has three prompts, and the other two
    "micro_batch": 1,
    "evaluate_every": 1,
    "save_every": 1,
    "max_gradient_norm": 1e6,
}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("Qwen2-VL", {"loss": "ties"}), ("LLaVA-OneVision", {}), ("Gemma 3", HEAD)],
    ids=["all weights", "layers that are not read", "low rank"],
)
def test_two_processes_learn_what_one_does(reds, tiny_vlm, tmp_path_factory, architecture, changes):
    uneven(reds)
    runs = tmp_path_factory.mktemp("runs")
    values = overrides(reds, tiny_vlm(architecture), **PROCESSES | changes)
    values = [value for value in values if not value.startswith("output=")]
    call = f"test_judge_resume.run_recipe('judge/preference', {values!r} + [f'output={{out}}'])"
    one, two = launched(call, runs)
    check_gradients(one, two, [1])
    check_logs(one, two)
    image = reds / "valid-0-0.png"
    assert RM.load(two, "cpu").score("red", image) == pytest.approx(
        RM.load(one, "cpu").score("red", image), abs=1e-3
    )


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("Qwen2-VL", {"sharding": "full", "ema": 0.5, "loss": "uncertain"}),
        ("LLaVA-OneVision", {"sharding": "hybrid", "checkpointing": "true"}),
        ("Gemma 3", HEAD | {"sharding": "zero2"}),
    ],
    ids=["full, averaged", "hybrid, recomputed", "zero2, low rank"],
)
def test_two_processes_with_shards_learn_what_one_without_does(
    reds, tiny_vlm, tmp_path, architecture, changes
):
    uneven(reds)
    steps = PROCESSES | {"batch_size": 4, "updates": 3, "learning_rate": 1e-4}
    whole = {name: value for name, value in changes.items() if name != "sharding"}
    model = tiny_vlm(architecture)
    run_recipe("judge/preference", overrides(reds, model, **steps, **whole))
    values = overrides(reds, model, **steps, **changes, output=reds / "sharded")
    ended = run_forked(run_recipe, "judge/preference", values, log=tmp_path / "log", ranks=2)
    assert ended.codes == [0, 0], ended.output
    histories = [json.loads((out / "history.json").read_text()) for out in (reds / "out", reds / "sharded")]
    for one, two in zip(*histories, strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-6)
    images = [reds / f"valid-{row}-0.png" for row in range(4)]
    one, two = (RM.load(reds / name, "cpu").score("red", images) for name in ("out", "sharded"))
    assert two == pytest.approx(one, abs=1e-4)  # AdamW divides rounding errors by small moments
    # It goes on without shards, in one process.
    values = [value for value in values if not value.startswith(("sharding=", "updates="))]
    run_recipe("judge/preference", [*values, "updates=4", "resume=true"])


def uneven(data):
    """Leaves prompts with two images and with three, so that a prompt's share is that of its pairs."""
    rows = json.loads((data / "train.json").read_text())
    for row in rows[::3]:
        row["generations"], row["ranking"] = row["generations"][:2], row["ranking"][:2]
    (data / "train.json").write_text(json.dumps(rows))


def test_two_processes_resume_where_they_were(reds, tiny_vlm, tmp_path):
    values = overrides(reds, tiny_vlm(), **PROCESSES | HEAD | {"updates": 3, "dropout": 0.3})
    runs = partial(run_forked, run_recipe, "judge/preference", log=tmp_path / "log", ranks=2)
    ended = runs(values)
    assert ended.codes == [0, 0], ended.output
    output = reds / "out"
    whole = {name: (output / name).read_bytes() for name in RESULT}
    for path in checkpoints(output)[1:]:
        path.rename(path.with_name(f"aside-{path.name}"))
    for name in whole:
        (output / name).unlink()
    ended = runs([*values, "resume=true"])
    assert ended.codes == [0, 0], ended.output
    for name, data in whole.items():
        assert (output / name).read_bytes() == data, name


def test_processes_that_cannot_share_an_update_are_refused():
    values = {"model": "m", "data": "d", "output": "o", "batch_size": 4, "micro_batch": 2}
    config = JudgeTrainingConfig(**values)
    config.check_processes(2, sharded=False)
    with pytest.raises(InputError, match="2 micro-batches for 3 processes"):
        config.check_processes(3, sharded=False)


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(reds, tiny_vlm, monkeypatch):
    original, calls = JudgeObjective.judged, 0

    def broken(self, learner, prompts):
        nonlocal calls
        calls += 1
        losses, right = original(self, learner, prompts)
        return (losses * float("nan") if calls > at else losses), right

    monkeypatch.setattr(JudgeObjective, "judged", broken)
    at = 3 + 1  # of three validations before the first update, and one update
    with pytest.raises(NonFiniteLossError, match=r"update 2: its loss is nan.*checkpoint-1"):
        train(reds, tiny_vlm, updates=2, save_every=1, evaluate_every=5)
    at, calls = 2, 0
    with pytest.raises(ImageRewardError, match=r"update 0: the validation loss is nan.*none"):
        train(reds, tiny_vlm, output=reds / "other")


@pytest.mark.parametrize("train_what", ["head", "all"])
def test_half_precision_learns_too(reds, tiny_vlm, train_what):
    changes = {
        "precision": "bfloat16",
        "train": train_what,
        "lora": "{ rank = 2 }" if train_what == "head" else "null",
    }
    train(reds, tiny_vlm, **changes, updates=15, learning_rate=1e-2 if train_what == "head" else 3e-3)
    losses = [
        entry["valid_loss"] for entry in validations(json.loads((reds / "out/history.json").read_text()))
    ]
    assert losses[-1] < 0.8 * losses[0]
    stored = {value.dtype for value in load_file(reds / "out/model.safetensors").values()}
    assert stored == {torch.bfloat16 if train_what == "head" else torch.float32}


def test_a_model_whose_output_layer_is_its_embedding_is_resumed(reds, tiny_vlm, tmp_path):
    """Large models share the two; a checkpoint holds every weight once."""
    from benchmarks.lib.tiny_vlms import ARCHITECTURES

    model, processor = ARCHITECTURES["Qwen2-VL"](False)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "tied")
    processor.save_pretrained(tmp_path / "tied")
    values = overrides(reds, tmp_path / "tied", updates=2, save_every=1)
    trained = run_recipe("judge/preference", values)
    again = run_recipe("judge/preference", [*values, "resume=true"])
    loaded = RM.load(reds / "out", "cpu")
    image = reds / "valid-0-0.png"
    assert trained.score("red", image) == again.score("red", image) == loaded.score("red", image)
