"""Learning: trains the adapter from the page's choices, and says beforehand whether it can."""

import copy
from typing import Any

from imagereward.choosing.saved import Saved
from imagereward.choosing.session import Records, ScoreAll, Train, Trained
from imagereward.errors import ImageRewardError, missing_extra
from imagereward.scoring.api import PairScorer
from imagereward.scoring.scorer import Scorer

REFITS = 4  # adapters on resampled choices, after each training


def why_not(scorer: PairScorer, saved: Saved) -> str:
    """Why the adapter could not be trained on the scorer here; "" if it can.

    An adapter is put on and taken off; the scorer is afterwards as before.
    """
    try:
        import imagereward.tuning.personal.bootstrap  # noqa: F401
        from imagereward.tuning.config import build
        from imagereward.tuning.distributed import check_first_gpu
        from imagereward.tuning.personal.config import LearningConfig
        from imagereward.tuning.personal.train import adapter_config, check_learnable
    except ImportError as error:
        return str(missing_extra("learning from choices", "train", error))
    if not isinstance(scorer, Scorer):
        return f"{scorer.name} is no model in this process, and cannot have an adapter"
    try:
        check_learnable(scorer)
        check_first_gpu(scorer.device)
        config = build(LearningConfig, {"kind": saved.kind}, "imagereward choose")
        scorer.add_adapter(adapter_config(config, saved.name))
        scorer.remove_adapter(saved.name)
    except ImageRewardError as error:
        return f"{scorer.name} cannot have an adapter: {error}"
    return ""


def trainer(scorer: Scorer, saved: Saved, folds: int = 5, **settings: Any) -> Train:
    """The function that a `Session` trains with: on a copy of the scorer.

    An adapter that is ahead of the scorer on held-out choices is saved; then `REFITS` adapters learn from
    resampled choices for as many epochs: where they disagree, more choices would tell most. One that is not
    ahead is dropped.

    folds, settings  further keys of the recipe imagereward/personal
    """

    def train(records: Records, score: ScoreAll) -> Trained:
        from imagereward.tuning.config import build
        from imagereward.tuning.personal.bootstrap import refits
        from imagereward.tuning.personal.choices import read_choices
        from imagereward.tuning.personal.config import LearningConfig
        from imagereward.tuning.personal.train import personalise_scorer

        learner, read = copy.deepcopy(scorer), read_choices(records, saved.choices.parent)
        config = build(LearningConfig, {"kind": saved.kind, **settings}, "imagereward choose")
        found = personalise_scorer(learner, read, config, saved.name, folds=folds)
        if not found.summary.ahead:
            return Trained(found.summary, records, [], [])
        summary = saved.save(found.adapter, found.summary, records)
        scores = score(learner)
        on = [name for name in scorer.adapters if scorer.adapters[name].enabled]
        refitted = refits(learner, read, config, summary.epochs, REFITS, score, on=on)
        return Trained(summary, records, scores, refitted)

    return train
