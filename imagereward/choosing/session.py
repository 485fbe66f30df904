"""Session: one person's choosing: what is asked next, what was chosen, and the adapter that learns."""

import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from imagereward.choosing.candidates import Candidates
from imagereward.choosing.journal import MOST_IMAGES, Journal
from imagereward.choosing.picking import AGAIN, Question, pick
from imagereward.errors import ImageRewardError, InputError
from imagereward.scoring.api import PairScorer

# The scores of all candidate images by a scorer.
ScoreAll = Callable[[PairScorer], list[float]]
Records = list[dict[str, Any]]
# An answer, as far as its images are candidates: (index of an image, its place from 1) of each.
Places = list[tuple[int, int]]


class Trained(NamedTuple):
    """What a training gives, or what an earlier one left.

    summary  a `Summary`; scores and refits are empty where the adapter is not `ahead` of the scorer
    records  the choices that it learned from
    scores   of all candidates, by the adapter
    refits   the same by each adapter of resampled choices; may be empty
    """

    summary: Any
    records: Records
    scores: list[float]
    refits: list[list[float]]


# (choices as records, scores of all candidates by a scorer) -> what came of it.
Train = Callable[[Records, ScoreAll], Trained]


class Session:
    """Asks about images of a prompt, and keeps the answers. Threads may share it.

    scorer       gives the scores by which questions are picked before there is an adapter; see `picking.pick`
    train        trains an adapter from the journal's choices; None: the page has no such button
    seed         decides the order of the images and random questions
    shown        how many images a question shows, at most; `show` changes it
    restore      gives what an earlier session trained, if it did
    no_training  why there is no `train`, for the page

    Images are on the page in random order, so that a habit of clicking on one side cancels out. A pair is
    asked about once; the images of a longer question are so many pairs. An adapter that is no better than
    the scorer changes nothing: what was trained before stays in use.
    """

    def __init__(
        self,
        scorer: PairScorer,
        candidates: Candidates,
        journal: Journal,
        train: Train | None = None,
        seed: int = 0,
        shown: int = 2,
        *,
        restore: Callable[[ScoreAll], Trained | None] | None = None,
        no_training: str = "",
    ):
        self.candidates, self.journal, self._train = candidates, journal, train
        self.run = secrets.token_hex(8)  # of images and answers: another run has other images
        self.no_training = no_training
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(candidates.prompts))}
        self._prompts_N = np.array([numbers[prompt] for prompt in candidates.prompts])
        self.most_shown = min(MOST_IMAGES, int(np.bincount(self._prompts_N).max()))
        self._paths = [image.resolve() for image in candidates.images]
        self._index_of = {key: index for index, key in enumerate(zip(candidates.prompts, self._paths))}
        self._pairs_P_2 = np.array(candidates.pairs)
        self._row_of = {pair: row for row, pair in enumerate(candidates.pairs)}
        self._asked: Counter[tuple[int, int]] = Counter()  # how often each pair was
        self._left_P = np.ones(len(candidates.pairs), bool)  # whether a pair was not
        self._pairs_asked_M = np.zeros(len(numbers), int)  # how many of each prompt were
        self._answers = [self._places(record) for record in journal.records]
        for answer in self._answers:
            self._note(answer, 1)
        self._base = self._now = np.array(self._scores_by(scorer))
        self._refits: np.ndarray | None = None
        self._used: Trained | None = None  # whose adapter is in use
        self._learned: set[tuple[int, int]] = set()  # the pairs that this adapter learned
        # Of each answer: preferences that were not learned, how many base and adapter foresaw.
        self._foreseen = [self._foresight(answer) for answer in self._answers]
        self.summary: Any = None
        if restore is not None and (found := restore(self._scores_by)) is not None:
            self.summary = found.summary
            self._use(found)
        self._source = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self.fault = ""
        self._thread: threading.Thread | None = None
        self._question: Question | None = None
        self.shown = 2
        self.show(shown)

    def _scores_by(self, scorer: PairScorer) -> list[float]:
        return scorer.score_pairs(list(self.candidates.prompts), list(self.candidates.images))

    def _places(self, record: dict[str, Any]) -> Places:
        folder = self.journal.path.parent
        found = (
            self._index_of.get((record["prompt"], (folder / name).resolve())) for name in record["images"]
        )
        return [(index, place) for index, place in zip(found, record["ranking"]) if index is not None]

    def _note(self, answer: Places, step: int) -> None:
        """Count the pairs of an answer as asked about once more (1), or once less (-1)."""
        for pair in combinations(sorted(index for index, _ in answer), 2):
            before = self._asked[pair] > 0
            self._asked[pair] += step
            now = self._asked[pair] > 0
            self._pairs_asked_M[self._prompts_N[pair[0]]] += now - before
            if (row := self._row_of.get(pair)) is not None:
                self._left_P[row] = not now

    def _use(self, found: Trained) -> None:
        """Pick by what was trained, and count what it foresees."""
        self._used, self._now = found, np.array(found.scores)
        self._refits = np.array(found.refits) if len(found.refits) > 1 else None
        answers = [self._places(record) for record in found.records]
        self._learned = {
            pair for answer in answers for pair in combinations(sorted(index for index, _ in answer), 2)
        }
        self._foreseen = [self._foresight(answer) for answer in self._answers]

    def show(self, count: int) -> None:
        """Show so many images of each question, and pick the next one. InputError for another number."""
        if type(count) is not int or not 2 <= count <= MOST_IMAGES:
            raise InputError(f"shown={count!r}: expected 2 to {MOST_IMAGES} images")
        with self._lock:
            self.shown = count
            self._ask()

    def _ask(self) -> None:
        """Pick the next question, among the prompts that were asked about least often."""
        rows = np.flatnonzero(self._left_P)
        if not len(rows):
            self._question = None
            return
        times = self._pairs_asked_M[self._prompts_N[self._pairs_P_2[rows, 0]]]
        left = self._pairs_P_2[rows[times == times.min()]]
        self._question = pick(
            left, self._prompts_N, self.shown, self._now, self._refits, self._source, len(self._answers)
        )

    def check_run(self, run: Any) -> None:
        """InputError for the `run` of another session, whose images have the same numbers; None passes."""
        if run not in (None, self.run):
            raise InputError("this page shows images of an earlier run; load it again")

    def answer(self, images: Sequence[int], ranking: Sequence[int]) -> None:
        """Keep an answer.

        images   the question's, as they are shown
        ranking  for each image its place, 1 for the best; images may share one

        InputError for images that are not asked about, as after a double click, and for another ranking.
        """
        with self._lock:
            if self._question is None or tuple(images) != self._question.images:
                raise InputError(f"images={list(images)!r}: others are asked about; load the page again")
            if (
                len(ranking) != len(images)
                or not all(type(rank) is int and 1 <= rank <= len(images) for rank in ranking)
                or 1 not in ranking
            ):
                raise InputError(
                    f"ranking={list(ranking)!r}: expected {len(images)} places from 1, the best, on"
                )
            paths = [self._paths[index] for index in images]
            self.journal.append(self.candidates.prompts[images[0]], paths, ranking)
            self._answers.append(list(zip(images, ranking)))
            self._note(self._answers[-1], 1)
            self._foreseen.append(self._foresight(self._answers[-1]))
            self._ask()

    def _foresight(self, answer: Places) -> tuple[int, float, float]:
        """(preferences in an answer, how many the scorer foresaw, how many the scorer as it is now).

        A tie of the scores is half foreseen, and so is a pair with a score that is NaN. Pairs that the
        adapter in use learned do not count.
        """
        decided = [
            (i, j) if a < b else (j, i)
            for (i, a), (j, b) in combinations(answer, 2)
            if a != b and (min(i, j), max(i, j)) not in self._learned
        ]
        base, now = (
            sum(0.5 + 0.5 * float(np.sign(np.nan_to_num(scores[i] - scores[j]))) for i, j in decided)
            for scores in (self._base, self._now)
        )
        return len(decided), base, now

    def undo(self) -> None:
        """Take the last answer back, and ask about its images again."""
        with self._lock:
            record = self.journal.undo()
            if record is None:
                return
            answer = self._answers.pop()
            self._foreseen.pop()
            self._note(answer, -1)
            if len(answer) == len(record["images"]):
                self._question = Question(tuple(index for index, _ in answer), AGAIN)
            else:
                self._ask()

    def train(self) -> None:
        """Start training in a thread; does nothing while one runs. InputError if there is none to start."""
        with self._lock:
            if self._train is None:
                raise InputError(
                    f"this page only collects choices: {self.no_training or 'it was started so'}"
                )
            if self.training:
                return
            self.fault = ""
            self._thread = threading.Thread(target=self._learn, args=(self._train,), daemon=True)
            self._thread.start()

    @property
    def training(self) -> bool:
        """Whether a training runs."""
        return self._thread is not None and self._thread.is_alive()

    def _learn(self, train: Train) -> None:
        try:
            found = train(list(self.journal.records), self._scores_by)
        except ImageRewardError as error:
            self.fault = str(error)
            return
        except Exception as error:  # the page has to say so; the thread has nobody else to tell
            self.fault = f"{type(error).__name__}: {error}"
            return
        with self._lock:
            self.summary = found.summary
            if found.summary.ahead:
                self._use(found)

    def state(self) -> dict[str, Any]:
        """What the page shows, as plain values."""
        with self._lock:
            question = None
            if self._question is not None:
                question = {
                    "images": list(self._question.images),
                    "prompt": self.candidates.prompts[self._question.images[0]],
                    "rule": self._question.rule,
                }
            count, base, now = map(sum, zip(*self._foreseen)) if self._foreseen else (0, 0, 0)
            return {
                "run": self.run,
                "question": question,
                "count": len(self._answers),
                "pairs": len(self.candidates.pairs),
                "shown": self.shown,
                "most_shown": self.most_shown,
                "refits": 0 if self._refits is None else len(self._refits),
                "can_train": self._train is not None,
                "no_training": self.no_training,
                "training": self.training,
                "fault": self.fault,
                "since": {"count": count, "base": base, "adapter": now},
                "trained": _described(self.summary),
                "used": None if self._used is None else _described(self._used.summary),
            }


def _described(summary: Any) -> dict[str, Any] | None:
    keys = ("choices", "pairs", "base", "adapted", "gain", "ahead", "recurring")
    return None if summary is None else {key: getattr(summary, key) for key in keys}
