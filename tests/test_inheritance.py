"""Recipes that inherit another recipe: merged tables, removed keys, origins of values, and bad input."""

import json

import pytest
from typer.testing import CliRunner

from imagereward.cli import app
from imagereward.errors import InputError
from imagereward.tuning import run_recipe
from imagereward.tuning.explain import explain
from imagereward.tuning.recipe import read_recipe, recipe_header, recipe_summary

BASE = """# The base of the tests.
objective = "grpo"
steps = 10
reward = {a = 1.0, b = 2.0}
kl = {form = "true", beta = 0.1}
[noise]
kind = "ddim"
level = 1.0
[lora]
rank = 32
alpha = 64
"""


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write("base.toml", BASE)
    return write


def test_tables_are_merged_key_by_key_and_own_values_come_first(write):
    path = write("mine.toml", 'inherits = "base.toml"\nsteps = 4\nreward = {b = 3.0}\n[lora]\nrank = 8\n')
    assert read_recipe(path) == {
        "objective": "grpo",
        "steps": 4,
        "reward": {"a": 1.0, "b": 3.0},
        "kl": {"form": "true", "beta": 0.1},
        "noise": {"kind": "ddim", "level": 1.0},
        "lora": {"rank": 8, "alpha": 64},
    }
    assert read_recipe(path, ["lora.alpha=1"])["lora"] == {"rank": 8, "alpha": 1}


def test_false_removes_a_table_and_null_any_key(write):
    path = write(
        "mine.toml",
        'inherits = "base.toml"\nsteps = "null"\nkl = "null"\nlora = false\nreward = "c"\nguard = false\n'
        '[noise]\nlevel = "null"\n',
    )
    assert read_recipe(path) == {
        "objective": "grpo",
        "reward": "c",
        "noise": {"kind": "ddim"},
        "guard": False,
    }


def test_true_keeps_a_table(write):
    path = write("mine.toml", 'inherits = "base.toml"\nlora = true\nguard = true\n')
    assert read_recipe(path)["lora"] == {"rank": 32, "alpha": 64}
    assert read_recipe(path)["guard"] is True


def test_a_table_takes_the_place_of_a_value_and_a_removed_one_begins_anew(write):
    write("middle.toml", 'inherits = "base.toml"\nlora = false\nreward = "c"\n')
    path = write("mine.toml", 'inherits = "middle.toml"\n[lora]\nrank = 2\n[reward]\nd = 1.0\n')
    assert read_recipe(path)["lora"] == {"rank": 2}
    assert read_recipe(path)["reward"] == {"d": 1.0}


def test_a_name_is_that_of_a_file_seen_from_the_file_or_of_the_package(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)  # the current directory does not matter
    assert read_recipe(write("deep/one.toml", 'inherits = "../base.toml"'))["steps"] == 10
    absolute = write("two.toml", f'inherits = "{tmp_path}/base.toml"')
    assert read_recipe(absolute)["steps"] == 10
    packaged = read_recipe(write("three.toml", 'inherits = "sd3/grpo"\nsteps = 3\n'))
    assert packaged == {**read_recipe("sd3/grpo"), "steps": 3}


def test_the_header_is_the_files_own(write):
    path = write("mine.toml", '# Mine (of many), short.\ninherits = "base.toml"\n')
    assert recipe_header(path) == "Mine (of many), short."
    assert recipe_summary(path) == "Mine, short."


def test_a_circle_names_its_files(write):
    write("a.toml", 'inherits = "b.toml"')
    path = write("b.toml", 'inherits = "./a.toml"')
    with pytest.raises(InputError, match=r"b\.toml -> \S+a\.toml -> \S+b\.toml: .* in a circle"):
        read_recipe(path)
    with pytest.raises(InputError, match=r"c\.toml -> \S+c\.toml: .* in a circle"):
        read_recipe(write("c.toml", 'inherits = "c.toml"'))


def test_an_unknown_name_names_the_chain_and_the_nearest(write):
    write("middle.toml", 'inherits = "sd3/grop"')
    path = write("mine.toml", 'inherits = "middle.toml"')
    message = (
        r"mine\.toml -> \S+middle\.toml inherits 'sd3/grop', which is no recipe .*did you mean 'sd3/grpo'"
    )
    with pytest.raises(InputError, match=message):
        read_recipe(path)
    with pytest.raises(InputError, match=r"mine\.toml inherits 'x', .*; expected a recipe of the package"):
        read_recipe(write("mine.toml", 'inherits = "x"'))


@pytest.mark.parametrize("value", ["3", '["base.toml"]', "true", '""', "{name = 1}"])
def test_a_name_that_is_no_text_is_refused(write, value):
    with pytest.raises(InputError, match=r"mine\.toml: inherits=.*; expected the name of a recipe"):
        read_recipe(write("mine.toml", f"inherits = {value}"))


def test_an_inherited_file_that_is_no_toml_is_named(write):
    write("bad.toml", "epochs = = 2")
    with pytest.raises(InputError, match=r"bad\.toml cannot be read as TOML"):
        read_recipe(write("mine.toml", 'inherits = "bad.toml"'))


def test_on_the_command_line_it_is_no_key():
    with pytest.raises(InputError, match="inherits is no key"):
        run_recipe("sd3/grpo", ["inherits=sd3/refl", "output=o"])


def test_explain_names_the_recipe_that_a_value_comes_from(write, tmp_path):
    text = 'inherits = "sd3/grpo"\nsteps = 7\nkl = false\nreward = {b = 3.0}\n[lora]\nrank = 8\n'
    middle = write("middle.toml", text)
    path = write("mine.toml", 'inherits = "middle.toml"\nguidance = 2.0\n[evaluation]\ncount = 3\n')
    found = {key.name: (key.value, key.origin) for key in explain(path, ["updates=9"])}
    assert found["guidance"] == ("2.0", "recipe")
    assert found["evaluation.count"] == ("3", "recipe")
    assert found["evaluation.steps"] == ("40", "recipe sd3/grpo")
    assert found["steps"] == ("7", f"recipe {middle}")
    assert found["reward"] == ("{b = 3.0}", f"recipe {middle}")
    assert found["lora.rank"] == ("8", f"recipe {middle}")
    assert found["lora.alpha"] == ("64", "recipe sd3/grpo")
    assert found["updates"] == ("9", "command line")
    assert found["kl"] == ("null", "default")
    assert found["keep_checkpoints"] == ("3", "default")
    result = CliRunner().invoke(app, ["tune", str(path), "--explain"])
    assert result.exit_code == 0, result.output
    line = next(line for line in result.stdout.splitlines() if line.startswith("lora.alpha = "))
    assert line.split() == ["lora.alpha", "=", "64", "recipe", "sd3/grpo"]


def test_the_runs_record_has_the_merged_values(write, tmp_path):
    path = write("mine.toml", 'inherits = "tiny/autoencoder"\npairs = 6\nupdates = 1\nbatch_size = 2\n')
    run_recipe(path, [f"output={tmp_path / 'out'}"])
    record = json.loads((tmp_path / "out/run.json").read_text())
    recipe = read_recipe("tiny/autoencoder")
    assert (record["pairs"], record["updates"]) == (6, 1)
    assert record["learning_rate"] == recipe["learning_rate"]
    assert "inherits" not in record
