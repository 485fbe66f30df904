"""A process of a training that ends is noticed by the others, whichever the training is."""

from pathlib import Path

import pytest
from forked import run_forked

from imagereward import shapes
from imagereward.tuning import run_recipe

TRAININGS = {
    "tiny/autoencoder": ["pairs=4", "updates=1", "batch_size=2", "micro_batch=1"],
    "tiny/quick": ["data=shapes", "batch_size=2", "micro_batch=1", "warmup=null"],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_what_the_first_process_refuses_ends_the_others_too(name, tmp_path, monkeypatch):
    """The first process alone looks whether the output is free."""
    monkeypatch.chdir(tmp_path)
    shapes.write(tmp_path / "shapes", 10, seed=1, size=64, progress=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("all of it")
    log = tmp_path / "log"
    ended = run_forked(run_recipe, name, [*TRAININGS[name], "output=out"], log=log, ranks=2)
    assert ended.codes == [1, 1]
    assert "InputError: out already holds something else" in Path(f"{log}.0").read_text()
    assert "ProcessLostError: process 0 of 2" in Path(f"{log}.1").read_text()
