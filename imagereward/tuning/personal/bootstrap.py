"""refits: adapters that learn from resampled choices; where they disagree, more choices would tell most."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from imagereward.precision import on_cpu
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.distributed import check_first_gpu
from imagereward.tuning.personal.choice import Choices
from imagereward.tuning.personal.config import LearningConfig
from imagereward.tuning.personal.fit import fit
from imagereward.tuning.personal.folds import groups_of
from imagereward.tuning.personal.learner import ready
from imagereward.tuning.personal.train import adapter_config
from imagereward.tuning.personal.validation import decided
from imagereward.tuning.trainer.accelerate_setup import accelerating

Found = TypeVar("Found")


@accelerating()
def refits(
    scorer: Scorer,
    choices: Choices,
    config: LearningConfig,
    epochs: int,
    count: int,
    find: Callable[[Scorer], Found],
    on: Sequence[str] = (),
) -> list[Found]:
    """`find(scorer)` with each of `count` fresh adapters, taught groups of choices drawn with replacement.

    The groups are those that a cross-validation holds out as a whole, such as the choices about a prompt.

    epochs   passes over the drawn choices, without held-out parts; such as the best number of all choices
    find     what is asked of the adapted scorer, such as the scores of some images
    on       adapters of the scorer that stay on, beneath the fresh ones

    Its other adapters are off meanwhile, and afterwards as before. The draws and the adapters' initial
    weights depend on the config's seed. It raises what `personalise_scorer` does.
    """
    check_first_gpu(scorer.device)
    choices = decided(choices, config)
    groups = np.array(groups_of(choices.items).of)
    found = []
    name = "refit"
    while name in scorer.adapters:
        name += "-"
    with scorer.using_adapters(*on), tempfile.TemporaryDirectory() as directory:
        for number in range(count):
            seed = [config.seed, 13, number]
            drawn = drawn_choices(groups, seed)
            with on_cpu():
                adapter = scorer.adapters.add(
                    scorer,
                    adapter_config(config, name),
                    scorer.token_streams(),
                    seed=config.seed + 1 + number,
                )
            try:
                learner, data, _ = ready(scorer, adapter, choices, config)
                adapter.let_learn()
                fit(learner, data.only(drawn), config, Path(directory), epochs=epochs)
                adapter.train(False)
                found.append(find(scorer))
            finally:
                scorer.adapters.remove(scorer, name)
    return found


def drawn_choices(groups: np.ndarray, seed: Sequence[int]) -> list[int]:
    """Indices of choices: all those of as many groups as there are, drawn with replacement."""
    names = np.unique(groups)
    drawn = np.random.default_rng(list(seed)).choice(names, len(names))
    return [int(index) for name in drawn for index in np.flatnonzero(groups == name)]
