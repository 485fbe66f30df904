"""What a training tells before, during and after; and how its keys are found."""

import logging
import re
import sys
from types import SimpleNamespace

import pipelines
import pytest
from accelerate import Accelerator
from forked import run_forked
from test_refl import PROMPTS, brightness, evaluations, policy_of, run
from typer.testing import CliRunner

from imagereward.cli import app, main
from imagereward.errors import InputError
from imagereward.tuning import run_recipe
from imagereward.tuning.config import build
from imagereward.tuning.explain import MISSING, ORIGINS, config_of, explain
from imagereward.tuning.objectives import OBJECTIVES, config_class
from imagereward.tuning.objectives.config import GeneratorConfig
from imagereward.tuning.recipe import read_recipe, recipe_header, recipe_names, recipe_summary
from imagereward.tuning.trainer import progress as telling_module
from imagereward.tuning.trainer.plan import generator_plan
from imagereward.tuning.trainer.progress import Pace, duration, headline


def told(capsys) -> str:
    """All that was written to stderr, without progress bars."""
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    return "\n".join(line for line in lines if "it/s" not in line and "s/it" not in line)


# Before, during, after.


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_generators_training_tells_its_plan_its_pace_and_what_came_of_it(lora, tmp_path, capsys):
    output = tmp_path / "out"
    tuned = run(output, lora=lora, updates=5, evaluate_every=2)
    text = told(capsys)
    plan, _, rest = text.partition("more updates of")
    network = pipelines.network_of(tuned)
    count = sum(value.numel() for value in network.parameters() if value.requires_grad)
    assert "  data       a list of 3" in plan
    assert f"{len(PROMPTS)} prompts" in plan
    assert f"{count:,} parameters" in plan
    assert ("LoRA of rank 2" if lora else "all of UNet2DConditionModel") in plan
    assert "  updates    5 of 4 samples, 2 at once" in plan
    assert "  evaluates  before, every 2 updates and after: 2 prompts, 2 images each" in plan
    assert f"  output     {output}" in plan
    assert "2 more updates of" in text  # told after three of five
    assert "and 2 evaluations of" in rest  # after updates 4 and 5
    before, after = (evaluations(output, "reward")[at] for at in (0, -1))
    assert f"{before:>10.4f}  {after:>10.4f}" in rest
    assert f"the result is in {output}, with README.md and samples/ with pictures; to load it:" in rest


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"objective": "dpo", "preferences": {"data": "prefs.parquet"}, "beta": 1.0},
            "prefs.parquet: 3 pairs",
        ),
        ({"objective": "sft", "pairs": {"data": "pairs.jsonl"}}, "pairs.jsonl: 3 pairs"),
        ({"objective": "refl", "prompts": "prompts.txt"}, "prompts.txt: 3 prompts"),
    ],
)
def test_a_plan_names_the_data_and_what_it_holds(values, said):
    config = config_class(values["objective"])(model="m", output="o", **values)
    accelerator = SimpleNamespace(num_processes=1, device="cpu")
    assert f"  data       {said}\n" in generator_plan(config, policy_of().denoiser, PROMPTS, 1, accelerator)


def test_evaluations_have_a_bar_that_says_which_they_are(tmp_path, capsys):
    run(tmp_path / "out", updates=2, evaluate_every=1)
    text = capsys.readouterr().err
    # A bar as short as these may be gone before it is drawn again: it is drawn at 0 % in any case.
    assert "evaluation before training: " in text
    assert "evaluation after update 1: " in text
    assert "evaluation after update 2: " in text


def test_the_bar_of_grpo_shows_the_reward_and_not_its_loss(tmp_path, capsys):
    from test_grpo import run as run_grpo

    run_grpo(tmp_path / "out", updates=1)
    text = capsys.readouterr().err
    assert re.search(r"\| 1/1 \[.*reward=-?\d", text)
    assert "loss=" not in text


@pytest.mark.parametrize(
    ("metrics", "shown"),
    [
        ({"loss": 7e-9, "reward": 0.51234, "kl": 0.0, "failed": 2}, {"reward": "0.5123", "failed": "2"}),
        ({"loss": 0.25, "gradient_norm": 3}, {"loss": "0.25"}),
        ({"reward": -1.5, "distance": 0.125}, {"reward": "-1.5", "distance": "0.125"}),
        ({}, {}),
    ],
)
def test_a_bar_shows_what_people_watch(metrics, shown):
    assert headline(metrics) == shown


def test_the_estimate_counts_updates_and_evaluations_that_are_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(telling_module.time, "monotonic", lambda: now[0])
    pace = Pace(0, 100, 20)

    def passes(seconds):
        now[0] += seconds

    with pace.evaluating():
        passes(30)
    passes(50)  # the first update, which is slower
    assert pace.after(1) == ""
    passes(4)
    assert pace.after(2) == ""
    passes(6)
    # (4 + 6) / 2 = 5 s each: 97 * 5 + 5 * 30 = 635 s
    assert pace.after(3) == "97 more updates of 5 s and 5 evaluations of 30 s take about 10 min 35 s"
    assert pace.after(4) == ""


def test_a_resumed_training_estimates_from_its_own_updates(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(telling_module.time, "monotonic", lambda: now[0])
    pace = Pace(50, 60, 0)
    said = []
    for done in range(51, 61):
        now[0] += 20
        said.append(pace.after(done))
    assert [text for text in said if text] == ["7 more updates of 20 s take about 2 min 20 s"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.345, "0.34 s"),
        (9.4, "9.4 s"),
        (42, "42 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_what_is_told_goes_to_the_log_where_that_is_shown(tmp_path, caplog, capsys):
    with caplog.at_level(logging.INFO, "imagereward"):
        run(tmp_path / "out", updates=1)
    assert any(record.message.startswith("refl:\n") for record in caplog.records)
    assert "refl:" not in told(capsys)


def test_without_an_output_it_is_asked_for_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in recipe_names():
        assert "output" not in read_recipe(name), name
    with pytest.raises(InputError, match=r"output is missing: say output=… \(a new or empty directory"):
        run_recipe("tiny/preference")
    assert not list(tmp_path.iterdir())


# Finding keys.


@pytest.mark.parametrize(
    ("objective", "key"),
    [("autoencoder", "evaluate_every"), ("clip", "evaluate_every"), ("clip", "micro_batch")],
)
def test_keys_without_effect_on_a_training_from_scratch_are_refused(objective, key):
    values = {**read_recipe(f"tiny/{objective}"), "output": "o", key: 7}
    with pytest.raises(InputError, match=f"{key} would have no effect"):
        build(config_of(objective, "x"), values)


def test_no_error_of_a_config_shows_a_password():
    values = {"model": "m", "output": "o", "prompts": "p", "reward": {"http://me:s3cret@gpu:8000": "1"}}
    with pytest.raises(InputError) as caught:
        build(config_class("refl"), values)
    assert "gpu:8000" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_every_key_of_every_config_is_described():
    kinds = {read_recipe(name)["objective"] for name in recipe_names()}
    assert kinds == {*OBJECTIVES, "preference", "personal", "judge", "autoencoder", "clip"}
    for name in recipe_names():
        for key in explain(name):
            assert len(key.meaning) > 10, (name, key.name)
            origin, _, inherited = key.origin.partition(" ")
            assert (
                key.origin in ORIGINS
                or (origin == "recipe" and inherited in recipe_names())
                or (key.value == MISSING)
            ), (name, key)


def test_explain_says_where_a_value_comes_from():
    found = {key.name: key for key in explain("sd15/refl_lora", ["lora.rank=8", "updates=3", "output=mine"])}
    assert (found["lora.rank"].value, found["lora.rank"].origin) == ("8", "command line")
    assert (found["output"].value, found["output"].origin) == ('"mine"', "command line")
    assert (found["updates"].value, found["updates"].origin) == ("3", "command line")
    assert found["objective"].origin == "recipe"
    assert (found["keep_checkpoints"].value, found["keep_checkpoints"].origin) == ("3", "default")
    values = read_recipe("sd15/refl_lora")
    assert float(found["learning_rate"].value) == values["learning_rate"]


@pytest.mark.parametrize("name", recipe_names())
def test_what_explain_prints_can_be_given_again(name):
    """Values are TOML: laid over the recipe, they change nothing."""
    given = [f"{key.name}={key.value}" for key in explain(name) if key.value != MISSING]
    kind = config_of(read_recipe(name)["objective"], name)
    once = build(kind, read_recipe(name, ["output=o"]), name).model_dump()
    again = build(kind, read_recipe(name, [*given, "output=o"]), name).model_dump()
    assert again == once


def test_tune_explain_prints_the_header_and_every_key_without_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for form in (["--explain"], ["--help"], ["-h"]):
        result = CliRunner().invoke(app, ["tune", "tiny/quick", "rounds=1", *form])
        assert result.exit_code == 0, result.output
        assert "imagereward tune tiny/quick data=shapes output=my-reward" in result.stdout
        for key in explain("tiny/quick"):
            assert f"\n{key.name} = {key.value}" in result.stdout
        assert "output is missing: say output=…" in result.stdout
        assert "rounds is no key; valid: " in result.stdout
    assert not list(tmp_path.iterdir())


def test_every_recipe_has_a_header_of_which_a_line_is_listed():
    for name in recipe_names():
        summary = recipe_summary(name)
        assert 20 < len(summary) < 220, name
        assert summary.endswith(".")
        assert "(" not in summary
        assert recipe_header(name)
    assert recipe_summary("tiny/preference").endswith("two minutes.")


def test_a_quick_recipe_is_the_one_that_the_help_names():
    page = CliRunner().invoke(app, ["tune", "--help"]).stdout
    for name in ("tiny/quick", "tiny/quick_refl"):
        assert f"imagereward tune {name} " in page
        assert "two minutes" in recipe_header(name).replace("\n", " ")


# Short forms.


def built(*overrides):
    return build(config_of("refl", "mine"), read_recipe("sd15/refl", ["output=o", *overrides]), "sd15/refl")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trackers=tensorboard", ("tensorboard",)),
        ("trackers=[tensorboard, wandb]", ("tensorboard", "wandb")),
        ('trackers=["wandb"]', ("wandb",)),
        ("trackers=tensorboard,wandb", ("tensorboard", "wandb")),
        ("trackers=[]", ()),
    ],
)
def test_one_tracker_needs_no_brackets(override, expected):
    assert built(override).trackers == expected


@pytest.mark.parametrize("word", ["true", "True"])
def test_lora_true_is_lora_with_its_defaults(word):
    assert built(f"lora={word}").lora.rank == 4
    assert built(f"lora={word}", "lora.rank=8").lora.rank == 8
    assert built("lora.rank=8", f"lora={word}").lora.rank == 8
    assert build(
        GeneratorConfig, {"objective": "refl", "model": "m", "output": "o", "lora": True}, "here"
    ).lora


@pytest.mark.parametrize("word", ["false", "False", "null"])
def test_lora_false_is_none(word):
    assert built(f"lora={word}").lora is None
    values = read_recipe("sd15/refl_lora", ["output=o", f"lora={word}"])
    assert build(config_of("refl", "mine"), values, "mine").lora is None


def test_lora_true_keeps_the_recipes_table():
    values = read_recipe("sd15/refl_lora", ["lora=true"])
    assert values["lora"] == read_recipe("sd15/refl_lora")["lora"]


@pytest.mark.parametrize("override", ["lora=8", "lora=yes", "evaluation=2", "gradient=last"])
def test_a_value_where_a_table_is_expected_is_told_the_right_form(override):
    name = override.split("=")[0]
    with pytest.raises(InputError, match=rf"{name}=.*: expected a table; say {name}\.\w+=…"):
        built(override)


# A second training in one process.


def test_a_second_training_may_have_another_precision(tmp_path):
    run(tmp_path / "one", updates=1, precision="bfloat16")
    run(tmp_path / "two", updates=1, precision="float32")
    run(tmp_path / "three", updates=1, precision="float16", lora={"rank": 2})


def test_a_training_after_one_that_failed_starts_anew(tmp_path):
    def failing(pixels, prompts):
        raise OSError("the reward is gone")

    with pytest.raises(Exception, match="the reward is gone"):
        run(tmp_path / "one", updates=1, precision="bfloat16", reward=failing)
    run(tmp_path / "two", updates=1, precision="float32")


def test_one_pipeline_can_be_tuned_twice_in_two_precisions(tmp_path):
    pipeline = pipelines.sd()
    for name, precision in (("one", "bfloat16"), ("two", "float32")):
        run(tmp_path / name, model=pipeline, updates=1, precision=precision)
    assert pipeline("a red circle", num_inference_steps=2, output_type="np", height=16, width=16).images.shape


def test_an_accelerator_of_the_callers_is_left_alone(tmp_path):
    ended = run_forked(train_beside_an_accelerator, tmp_path / "out", log=tmp_path / "log")
    assert ended.codes == [0], ended.output


def train_beside_an_accelerator(output):
    accelerator = Accelerator(mixed_precision="no")
    run(output, updates=1)
    assert accelerator.state.mixed_precision == "no"
    assert accelerator.device.type == "cpu"


RECIPE = """
objective = "refl"
model = "{model}"
prompts = "{prompts}"
reward = "test_training_plan:{reward}"
resolution = 16
steps = 6
updates = 3
batch_size = 2
micro_batch = 2
save_every = 1

[gradient]
first_step = 3
last_step = 5

[evaluation]
count = 1
seeds = 1
batch_size = 1
"""
STOPPED_AFTER = []  # a checkpoint


def interrupting(pixels, prompts):
    """Brightness; Ctrl-C once, after the checkpoint."""
    if STOPPED_AFTER and STOPPED_AFTER[0].is_dir():
        STOPPED_AFTER.clear()
        raise KeyboardInterrupt
    return brightness(pixels, prompts)


def recipe_file(tmp_path, reward):
    pipelines.sd().save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    values = {"model": tmp_path / "model", "prompts": tmp_path / "prompts.txt", "reward": reward}
    (tmp_path / "mine.toml").write_text(RECIPE.format(**values))
    return str(tmp_path / "mine.toml")


def test_a_training_by_the_command_ends_with_the_lines_that_load_it(tmp_path):
    arguments = ["tune", recipe_file(tmp_path, "brightness"), f"output={tmp_path / 'out'}"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "pipeline = DiffusionPipeline.from_pretrained(directory, dtype=torch.float32)" in result.output


def test_a_training_that_ctrl_c_stopped_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    output, arguments = tmp_path / "out", ["imagereward", "tune", recipe_file(tmp_path, "interrupting")]
    monkeypatch.setattr(sys, "argv", [*arguments, f"output={output}"])
    STOPPED_AFTER.append(output / "checkpoint-1")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    error = capsys.readouterr().err
    assert f"imagereward: {output}: the same command with --resume latest goes on\n" in error
    assert error.endswith("imagereward: interrupted\n")
    assert not (output / "checkpoint-2").exists()
    monkeypatch.setattr(sys, "argv", [*arguments, f"output={output}", "--resume", "latest"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert len(evaluations(output, "reward")) == 2
    assert (output / "README.md").is_file()
