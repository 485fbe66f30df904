"""personalise: teaches a scorer one taste from choices, as an adapter, and says whether it learned any."""

import json
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.adapters.base import Adapter
from imagereward.adapters.files import formats_of, weights_hashes
from imagereward.adapters.positions import clamped_rows
from imagereward.checkpoints.loading import load
from imagereward.config import AdapterConfig
from imagereward.errors import InputError, PositionsClampedWarning
from imagereward.precision import on_cpu
from imagereward.scoring.scorer import Scorer
from imagereward.tuning.config import build
from imagereward.tuning.distributed import (
    check_first_gpu,
    is_first_process,
    of_first_process,
    wait_for_everyone,
)
from imagereward.tuning.personal.card import CARD_FILE, card
from imagereward.tuning.personal.choice import Choices
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.config import LearningConfig, PersonalConfig, check_parts
from imagereward.tuning.personal.fit import CURVE_FILE
from imagereward.tuning.personal.folds import groups_of
from imagereward.tuning.personal.summary import Summary
from imagereward.tuning.personal.validation import FOLDS, decided, train_and_measure
from imagereward.tuning.trainer.accelerate_setup import accelerating, join_processes
from imagereward.tuning.trainer.progress import tell
from imagereward.tuning.trainer.run_directory import (
    RUN_FILE,
    check_run_directory,
    create_run_directory,
    write_atomically,
)

SUMMARY_FILE = "summary.json"
LEARNED_FROM = "learned_from"  # key of run.json: digests of the choices and of the base's weights


class Personalised(NamedTuple):
    """The adapter, which is on the scorer, and what came of its training."""

    adapter: Adapter
    summary: Summary


def adapter_config(config: LearningConfig, name: str) -> AdapterConfig:
    """The adapter that a config describes."""
    keys = ("kind", "modules", "rank", "positions", "shared", "activation", "bias", "subspaces", "dropout")
    return AdapterConfig(name=name, alpha=config.alpha, **{key: getattr(config, key) for key in keys})


def check_learnable(scorer: Scorer) -> None:
    """InputError for a scorer whose scores have no gradient, before anything is scored."""
    if not scorer.passes_gradients:
        raise InputError(
            f"the scores of {scorer.name} have no gradient, since it writes its verdict or asks questions "
            "from a file, so no adapter can learn on it: take a judge with one question, such as vqa:MODEL"
        )


@accelerating()
def personalise_scorer(
    scorer: Scorer,
    choices: Choices,
    config: LearningConfig,
    name: str,
    *,
    folds: int = 5,
    share: float = 0.2,
    directory: Path | None = None,
    resume: bool = False,
) -> Personalised:
    """Put a new adapter on the scorer, and teach it the choices.

    folds      parts of a cross-validation, at least 2: each is held out once, then all choices are learned,
               for as many epochs as were best. 0: a `share` of the groups is held out, of which one half
               selects the best epoch and the other half measures
    directory  for the parts' results and checkpoints; None: nothing is kept

    Nothing else of the scorer learns. If the training fails, the adapter is taken off again. Raises
    InputError for choices that say nothing, for a config that does not suit the scorer, for folds and shares
    out of range, and for a scorer on another GPU than the first.
    """
    began = time.monotonic()
    check_learnable(scorer)
    check_parts(folds, share)
    check_first_gpu(scorer.device)
    join_processes()
    choices = decided(choices, config)
    groups = groups_of(choices.items)
    with on_cpu():
        adapter = scorer.adapters.add(
            scorer, adapter_config(config, name), scorer.token_streams(), seed=config.seed
        )
    try:
        clamped = _clamped(scorer, adapter, choices)
        with tempfile.TemporaryDirectory() as temporary:
            # Trainer's files are the first process's, where the others read them.
            where = Path(of_first_process(temporary)) if directory is None else directory
            keep = directory is not None
            found = train_and_measure(
                scorer, adapter, choices, groups, config, folds, share, where, keep=keep, resume=resume
            )
            wait_for_everyone()  # before any files are removed
    except BaseException:
        scorer.adapters.remove(scorer, name)
        raise
    adapter.train(False)
    adapter.let_learn(False)
    scorer.config = replace(scorer.config, adapters=scorer.adapters.configs)
    summary = replace(found, clamped=clamped, seconds=time.monotonic() - began)
    return Personalised(adapter, summary)


def _clamped(scorer: Scorer, adapter: Adapter, choices: Choices) -> int:
    """How many prompts have fewer tokens than the positions ask for; PositionsClampedWarning if any has.

    0 for an adapter without modules in the stream of the prompts' tokens.
    """
    config = adapter.config
    if config.kind == "lora" or "text" not in adapter.streams:
        return 0
    prompts = list(dict.fromkeys(choice.prompt for choice in choices.items))
    count = clamped_rows(config.positions, scorer.stream_lengths(prompts))
    if count:
        warnings.warn(
            f"positions={config.positions!r}: {count} of {len(prompts)} prompts of {choices.source} have "
            "fewer tokens; of these, the first and the last ones get at most half each",
            PositionsClampedWarning,
            stacklevel=2,
        )
    return count


@accelerating()
def tune_personal(values: dict[str, Any], source: str) -> Adapter:
    """Train an adapter as a recipe's values say, and write it to its output directory; returns it."""
    config = build(PersonalConfig, values, source)
    check_first_gpu(config.device)
    described = config.model_dump(exclude={"resume"})
    output = check_run_directory(config.output, described, config.resume, may_differ=[LEARNED_FROM])
    choices = read_choices(config.data, config.images, config.encoding)
    join_processes()
    scorer = load(config.scorer, config.device)
    name = config.name or output.resolve().name
    adapter_config(config, name)  # a wrong name is refused before anything is written
    if is_first_process():
        described[LEARNED_FROM] = _learned_from(config, scorer, choices, output)
        create_run_directory(output, described)
        tell(_plan(config, scorer, choices))
    adapter, summary = personalise_scorer(
        scorer,
        choices,
        config,
        name,
        folds=config.folds,
        share=config.held_out,
        directory=output,
        resume=config.resume,
    )
    if is_first_process():
        save_result(adapter, summary, output)
        tell(f"{summary}\nthe adapter is in {output}; to use it:\n    " + loading_line(adapter, output))
    return adapter


def _learned_from(config: PersonalConfig, scorer: Scorer, choices: Choices, output: Path) -> dict[str, str]:
    """{key of the config: digest of what it stands for}: the choices, and the base's weights.

    InputError if a run that is resumed began with others: its finished parts would not belong to them.
    """
    weights = weights_hashes(scorer, formats_of(scorer)[:1])
    on = scorer.adapters.digest_of(("",)).hex()
    found = {"data": choices.digest(), "scorer": "+".join(filter(None, [*weights.values(), on]))}
    if config.resume:
        before = json.loads((output / RUN_FILE).read_text(encoding="utf-8")).get(LEARNED_FROM) or {}
        for key in (key for key, digest in found.items() if before.get(key) != digest):
            what = {"data": "choices or their images", "scorer": "weights"}[key]
            raise InputError(
                f"{output} cannot be resumed: {key}={getattr(config, key)!r} has other {what} now than when "
                f"the run began; say another output= to learn from these, or delete {output} to begin again"
            )
    return found


def _plan(config: PersonalConfig, scorer: Scorer, choices: Choices) -> str:
    parts = f"{config.folds} parts, each held out once" if config.folds else f"{config.held_out:.0%} held out"
    return (
        f"{scorer.name} learns {len(choices.items)} {choices.kind} of {config.data} by {config.kind} of rank "
        f"{config.rank}; {parts}"
    )


def loading_line(adapter: Adapter, output: Path) -> str:
    """A line of Python that loads the scorer with the adapter."""
    return f"RM.load({adapter.described().base!r}, adapter={str(output)!r})"


def save_result(adapter: Adapter, summary: Summary, output: Path) -> Summary:
    """Write the adapter, its card and summary.json; remove checkpoints, which are of no more use."""
    adapter.save_pretrained(output)
    size = sum((output / name).stat().st_size for name in ("config.json", "adapter.safetensors"))
    summary = replace(summary, bytes=size)
    write_atomically(output / CARD_FILE, card(adapter, summary, loading_line(adapter, output)))
    write_atomically(output / SUMMARY_FILE, json.dumps(summary.to_dict(), indent=1) + "\n")
    for leftover in [*output.glob("checkpoint-*"), output / FOLDS]:
        shutil.rmtree(leftover, ignore_errors=True)
    (output / CURVE_FILE).unlink(missing_ok=True)
    return summary


def personalise_and_save(
    scorer: Scorer,
    choices: Choices,
    config: LearningConfig,
    name: str,
    output: str | os.PathLike | None,
    *,
    folds: int,
    share: float,
) -> Personalised:
    """`personalise_scorer`, whose adapter is then saved in `output`, a new directory, if there is one."""
    target = None if output is None else check_run_directory(os.fspath(output), {}, False)
    result = personalise_scorer(scorer, choices, config, name, folds=folds, share=share)
    if target is not None and is_first_process():
        target.mkdir(parents=True, exist_ok=True)
        result = result._replace(summary=save_result(result.adapter, result.summary, target))
    return result
