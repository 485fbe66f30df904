"""Session: one person's choosing: what is asked next, what was chosen, and the adapter that learns."""

import copy
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from imagereward.choosing.candidates import Candidates
from imagereward.choosing.journal import MOST_IMAGES, Journal
from imagereward.choosing.picking import AGAIN, Question, disagreement, pick
from imagereward.errors import ImageRewardError, InputError
from imagereward.scoring.scorer import Scorer

# The scores of all candidate images by a scorer.
ScoreAll = Callable[[Scorer], list[float]]
# A pair of images of a prompt, by their paths.
Key = tuple[str, frozenset[str]]


class Trained(NamedTuple):
    """What a training gives: scores by the adapter and by each refit on resampled choices; its summary."""

    scores: list[float]
    refits: list[list[float]]
    summary: Any


# (path of the choices, scores of all candidates by a scorer) -> what came of it.
Train = Callable[[Path, ScoreAll], Trained]


class Session:
    """Asks about images of a prompt, and keeps the answers. Threads may share it.

    scorer   gives the scores by which questions are picked, before there is an adapter; see `picking.pick`
    train    trains an adapter from the journal; None: the page has no such button
    seed     decides the order of the images and random questions
    shown    how many images a question shows, at most; `show` changes it

    Images are on the page in random order, so that a habit of clicking on one side cancels out. A pair is
    asked about once; the images of a longer question are so many pairs.
    """

    def __init__(
        self,
        scorer: Scorer,
        candidates: Candidates,
        journal: Journal,
        train: Train | None = None,
        seed: int = 0,
        shown: int = 2,
    ):
        self.candidates, self.journal, self._train = candidates, journal, train
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(candidates.prompts))}
        self._prompt_of = [numbers[prompt] for prompt in candidates.prompts]
        self.most_shown = min(MOST_IMAGES, max(Counter(self._prompt_of).values()))
        self._base = self._scores_by(scorer)
        self._now = self._base
        self._refits: list[list[float]] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._asked: Counter[Key] = Counter(key for each in journal.records for key in self._keys(each))
        self._count = len(journal.records)
        # Of each answer since the last training: preferences, how many the base and the adapter foresaw.
        self._since: list[tuple[int, int, int]] = []
        self.summary: Any = None
        self.fault = ""
        self._thread: threading.Thread | None = None
        self._question: Question | None = None
        self.shown = 2
        self.show(shown)

    def _scores_by(self, scorer: Scorer) -> list[float]:
        return scorer.score_pairs(list(self.candidates.prompts), list(self.candidates.images))

    def _keys(self, record: dict[str, Any]) -> list[Key]:
        """The pairs of images that a record is about."""
        folder = self.journal.path.parent
        paths = [str((folder / name).resolve()) for name in record["images"]]
        return [(record["prompt"], frozenset(pair)) for pair in combinations(paths, 2)]

    def _key(self, pair: Sequence[int]) -> Key:
        images = frozenset(str(self.candidates.images[index].resolve()) for index in pair)
        return self.candidates.prompts[pair[0]], images

    def show(self, count: int) -> None:
        """Show so many images of each question, and pick the next one. InputError for another number."""
        if type(count) is not int or not 2 <= count <= MOST_IMAGES:
            raise InputError(f"shown={count!r}: expected 2 to {MOST_IMAGES} images")
        with self._lock:
            self.shown = count
            self._ask()

    def _ask(self) -> None:
        """Pick the next question, among the prompts that were asked about least often."""
        left = [pair for pair in self.candidates.pairs if not self._asked[self._key(pair)]]
        if not left:
            self._question = None
            return
        asked = Counter(prompt for (prompt, _), times in self._asked.items() if times)
        fewest = min(asked[self.candidates.prompts[i]] for i, _ in left)
        left = [pair for pair in left if asked[self.candidates.prompts[pair[0]]] == fewest]
        refits = disagreement(self._refits) if len(self._refits) > 1 else None
        self._question = pick(left, self._prompt_of, self.shown, self._now, refits, self._random, self._count)

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
            paths = [self.candidates.images[index].resolve() for index in images]
            self.journal.append(self.candidates.prompts[images[0]], paths, ranking)
            self._asked.update(self._key(pair) for pair in combinations(images, 2))
            self._count += 1
            self._since.append(self._foreseen(images, ranking))
            self._ask()

    def _foreseen(self, images: Sequence[int], ranking: Sequence[int]) -> tuple[int, int, int]:
        """(preferences in a ranking, how many the scorer foresaw, how many the scorer as it is now)."""
        decided = [
            (i, j) if a < b else (j, i)
            for (i, a), (j, b) in combinations(zip(images, ranking, strict=True), 2)
            if a != b
        ]
        right = [sum(scores[i] > scores[j] for i, j in decided) for scores in (self._base, self._now)]
        return len(decided), right[0], right[1]

    def undo(self) -> None:
        """Take the last answer back, and ask about its images again."""
        with self._lock:
            record = self.journal.undo()
            if record is None:
                return
            self._asked.subtract(self._keys(record))
            self._count -= 1
            if self._since:
                self._since.pop()
            folder = self.journal.path.parent
            places = {str(path.resolve()): index for index, path in enumerate(self.candidates.images)}
            found = [places.get(str((folder / name).resolve())) for name in record["images"]]
            known = [index for index in found if index is not None]
            if len(known) == len(found):
                self._question = Question(tuple(known), AGAIN)
            else:
                self._ask()

    def train(self) -> None:
        """Start training in a thread; does nothing while one runs. InputError if there is none to start."""
        with self._lock:
            if self._train is None:
                raise InputError("this page does not train: it was started without an adapter's directory")
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
            found = train(self.journal.path, self._scores_by)
        except ImageRewardError as error:
            self.fault = str(error)
            return
        except Exception as error:  # the page has to say so; the thread has nobody else to tell
            self.fault = f"{type(error).__name__}: {error}"
            return
        with self._lock:
            self._now, self._refits, self.summary = found.scores, found.refits, copy.copy(found.summary)
            self._since = []

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
            count, base, now = (sum(column) for column in zip(*self._since)) if self._since else (0, 0, 0)
            return {
                "question": question,
                "count": self._count,
                "pairs": len(self.candidates.pairs),
                "shown": self.shown,
                "most_shown": self.most_shown,
                "refits": len(self._refits),
                "can_train": self._train is not None,
                "training": self.training,
                "fault": self.fault,
                "since": {"count": count, "base": base, "adapter": now},
                "trained": None if self.summary is None else self._trained(),
            }

    def _trained(self) -> dict[str, Any]:
        keys = ("choices", "pairs", "base", "adapted", "gain", "better")
        return {key: getattr(self.summary, key) for key in keys}
