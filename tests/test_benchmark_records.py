"""Results files name command, versions and commit, and benchmarks refuse changed code."""

import argparse
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

from benchmarks.lib import record
from benchmarks.lib.paths import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def repository(tmp_path):
    """A git repository with one commit of one module."""
    (tmp_path / "imagereward").mkdir()
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "imagereward/a.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("ignored.py\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_only_code_that_differs_from_the_commit_is_a_change(repository):
    (repository / "README.md").write_text("a page")
    (repository / "benchmarks/results/bulk-cpu.json").write_text("{}")
    (repository / "benchmarks/README.md").write_text("a map")
    (repository / "imagereward/ignored.py").write_text("")
    assert record.changed_files(repository) == []
    (repository / "imagereward/a.py").write_text("a = 2\n")
    (repository / "benchmarks/new one.py").write_text("")
    assert record.changed_files(repository) == ["benchmarks/new one.py", "imagereward/a.py"]


def test_changed_code_is_refused_unless_allowed(monkeypatch):
    monkeypatch.setattr(record, "changed_files", lambda: [])
    record.refuse_changes(False)
    monkeypatch.setattr(record, "changed_files", lambda: ["imagereward/a.py", "imagereward/b.py"])
    with pytest.raises(SystemExit, match=r"^2 files differ .* such as imagereward/a\.py; .*--allow-changes"):
        record.refuse_changes(False)
    record.refuse_changes(True)


def test_an_environment_names_versions_command_and_commit(monkeypatch):
    monkeypatch.setattr(record, "changed_files", lambda: [])
    clean = record.environment(CPU)
    for package in ("torch", "diffusers", "accelerate", "peft"):
        assert clean["versions"][package] == version(package)
    assert shlex.split(clean["command"]) == ["python", *sys.orig_argv[1:]]
    assert not clean["commit"].endswith("+")
    assert "changed_files" not in clean
    monkeypatch.setattr(record, "changed_files", lambda: ["imagereward/a.py"])
    changed = record.environment(CPU)
    assert changed["commit"] == clean["commit"] + "+"
    assert changed["changed_files"] == ["imagereward/a.py"]


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(record, "PACKAGES", ("torch", "no-such-package"))
    assert list(record.environment(CPU)["versions"]) == ["torch"]


def test_measures_are_added_only_to_those_of_the_same_device_and_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    assert record.so_far("bulk-cpu", CPU) == {}
    environment = record.environment(CPU)
    earlier = {**environment, "command": "python -m another", "commit": "1234567", "date": "2026-01-01"}
    record.write("bulk-cpu", {"environment": earlier, "memory": 1.0})
    assert record.so_far("bulk-cpu", CPU)["memory"] == 1.0
    record.write("bulk-cpu", {"environment": {**environment, "threads": 99}})
    with pytest.raises(SystemExit, match=r"threads 99, now "):
        record.so_far("bulk-cpu", CPU)


def test_every_module_that_writes_results_refuses_changed_code():
    writers = [path for path in (ROOT / "benchmarks").rglob("*.py") if "record.write(" in path.read_text()]
    assert len(writers) >= 10
    for path in writers:
        text = path.read_text()
        assert "record.add_option(" in text, path
        assert "record.refuse_changes(" in text, path


def test_the_option_is_one_of_argparse():
    parser = argparse.ArgumentParser()
    record.add_option(parser)
    assert not parser.parse_args([]).allow_changes
    assert parser.parse_args(["--allow-changes"]).allow_changes
