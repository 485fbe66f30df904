"""The benchmark of tuning an inpainting model: a run has a record, and records make the table."""

import json

import numpy as np
import pytest

from benchmarks.lib import record
from benchmarks.pages import training_tables
from benchmarks.toy_models.tiny_inpaint import start
from benchmarks.training import inpainting

SMALL = {"updates": 1, "batch_size": 4, "micro_batch": 4, "group": 2, "steps": 3, "evaluate_every": 1}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The benchmark cut down, with its records in a folder of the test; the model before its training."""
    for name, value in (("HELD_OUT", 3), ("WATCHED", 1), ("TRAINED", 4), ("DRAWN", 1), ("STEPS", 2)):
        monkeypatch.setattr(inpainting, name, value)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    start().save_pretrained(tmp_path / "model")
    return tmp_path


def test_a_run_is_trained_once_and_leaves_a_record(small, monkeypatch):
    inpainting.measure("online DPO", 2, small / "work", small / "model", **SMALL)
    found = json.loads((small / "results/inpainting/online-dpo-2.json").read_text())
    assert inpainting.record_of("online DPO", 2) == found
    assert (found["method"], found["run"]) == ("online DPO", 2)
    assert set(found["rewards"]) == {"region", "boundary", "inside", "preservation"}
    assert np.array(found["rewards"]["region"]).shape == (2, 3, 1)
    assert [point["update"] for point in found["curve"]] == [0, 1]
    assert found["minutes"] > 0
    assert all(0 < each < 0.2 for each in found["floor"])
    config = json.loads((small / "work/online-dpo-2/run.json").read_text())
    assert (config["seed"], config["objective"]) == (2, "dpo_online")
    monkeypatch.setattr(inpainting, "tune", None)  # a finished run is not trained again
    assert inpainting.train("online DPO", 2, small / "work", small / "model").name == "online-dpo-2"


def test_the_table_is_of_the_methods_of_which_every_run_has_a_record(small, capsys):
    rng = np.random.default_rng(0)
    before = rng.normal(size=(20, 2))
    gains = (1.0, 2.0, 3.0)
    for run, gain in zip(inpainting.RUNS, gains):
        for method in ("ReFL", "GRPO"):
            rewards = {
                name: [before.tolist(), (before + gain).tolist()] for name in inpainting.NAMES.values()
            }
            rewards["preservation"] = [(before * 0 - 0.02).tolist(), (before * 0 - 0.03).tolist()]
            found = {"method": method, "run": run, "minutes": float(run), "floor": [0.01] * 20}
            if (method, run) != ("GRPO", 3):
                record.write(f"inpainting/{inpainting.slug(method, run)}", {**found, "rewards": rewards})
    inpainting.tabulate()
    assert "GRPO: 2 of 3 runs have a record; left out" in capsys.readouterr().out
    (row,) = json.loads((small / "results/inpainting.json").read_text())["rows"]
    assert row["method"] == "ReFL"
    assert row["minutes"] == 3
    assert row["region gained"] == pytest.approx(2.0)
    assert row["region of runs"] == pytest.approx(gains)
    assert row["region low"] == pytest.approx(2.0, abs=1e-3)
    assert (row["outside before"], row["outside"], row["floor"]) == pytest.approx((0.02, 0.03, 0.01))
    table = training_tables.inpainting(json.loads((small / "results/inpainting.json").read_text()))
    assert table.splitlines()[-1].startswith("| ReFL | ")
    assert "+2.000 (+2.000 to +2.000); +1.000, +2.000, +3.000" in table
