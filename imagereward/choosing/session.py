"""Session: one person's choosing: which pair comes next, what was chosen, and the adapter that learns."""

import copy
import random
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagereward.choosing.candidates import Candidates
from imagereward.choosing.journal import Journal
from imagereward.errors import ImageRewardError, InputError
from imagereward.scoring.scorer import Scorer

ANSWERS = {"left": (1, 2), "right": (2, 1), "tie": (1, 1)}
# Every so many questions, a random pair is asked instead of the closest one, so that clear preferences are
# learned from as well.
RANDOM_EVERY = 3
# (path of the choices) -> (an adapted scorer, its summary).
Train = Callable[[Path], tuple[Scorer, Any]]


class Session:
    """Asks about pairs, and keeps the answers. Threads may share it.

    scorer   gives the scores by which pairs are chosen: the next one is that with the closest scores of the
             pairs that were not asked, every third a random one
    train    trains an adapter from the journal; None: the page has no such button
    seed     decides sides and random pairs

    A pair is on the page with its sides swapped at random, so that a habit of clicking on one side cancels
    out.
    """

    def __init__(
        self,
        scorer: Scorer,
        candidates: Candidates,
        journal: Journal,
        train: Train | None = None,
        seed: int = 0,
    ):
        self.candidates, self.journal, self._train = candidates, journal, train
        self._base = self._scores_by(scorer)
        self._now = self._base
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._asked = {self._key(record) for record in journal.records}
        self._count = len(journal.records)
        self._since: list[tuple[bool, bool]] = []  # predicted by (base, adapter) since the last training
        self.summary: Any = None
        self.fault = ""
        self._thread: threading.Thread | None = None
        self._question: tuple[int, int] | None = None
        self._ask()

    def _scores_by(self, scorer: Scorer) -> list[float]:
        return scorer.score_pairs(list(self.candidates.prompts), list(self.candidates.images))

    def _key(self, record: dict[str, Any]) -> tuple[str, frozenset[str]]:
        folder = self.journal.path.parent
        return record["prompt"], frozenset(str((folder / name).resolve()) for name in record["images"])

    def _pair_key(self, pair: tuple[int, int]) -> tuple[str, frozenset[str]]:
        images = frozenset(str(self.candidates.images[index].resolve()) for index in pair)
        return self.candidates.prompts[pair[0]], images

    def _ask(self) -> None:
        """Choose the next pair, among the prompts that were asked about least often."""
        left = [pair for pair in self.candidates.pairs if self._pair_key(pair) not in self._asked]
        if not left:
            self._question = None
            return
        asked = Counter(prompt for prompt, _ in self._asked)
        fewest = min(asked[self.candidates.prompts[i]] for i, _ in left)
        left = [pair for pair in left if asked[self.candidates.prompts[pair[0]]] == fewest]
        if self._count % RANDOM_EVERY == RANDOM_EVERY - 1:
            pair = self._random.choice(left)
        else:
            pair = min(left, key=lambda pair: abs(self._now[pair[0]] - self._now[pair[1]]))
        self._question = pair if self._random.random() < 0.5 else (pair[1], pair[0])

    def answer(self, pair: tuple[int, int], choice: str) -> None:
        """Keep an answer. InputError if the pair is not the one that is asked, as after a double click."""
        with self._lock:
            if choice not in ANSWERS:
                raise InputError(f"choice={choice!r}: expected {', '.join(ANSWERS)}")
            if self._question is None or tuple(pair) != self._question:
                raise InputError(f"pair={list(pair)!r}: another pair is asked; load the page again")
            ranking = ANSWERS[choice]
            left, right = (self.candidates.images[index] for index in pair)
            self.journal.append(self.candidates.prompts[pair[0]], (left.resolve(), right.resolve()), ranking)
            self._asked.add(self._pair_key(self._question))
            self._count += 1
            if choice != "tie":
                better, worse = pair if choice == "left" else (pair[1], pair[0])
                self._since.append(
                    (self._base[better] > self._base[worse], self._now[better] > self._now[worse])
                )
            self._ask()

    def undo(self) -> None:
        """Take the last answer back, and ask its pair again."""
        with self._lock:
            record = self.journal.undo()
            if record is None:
                return
            key = self._key(record)
            self._asked.discard(key)
            self._count -= 1
            if record["ranking"] != [1, 1] and self._since:
                self._since.pop()
            folder = self.journal.path.parent
            places = {str(path.resolve()): index for index, path in enumerate(self.candidates.images)}
            pair = [places.get(str((folder / name).resolve())) for name in record["images"]]
            self._question = (pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else None
            if self._question is None:
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
            scorer, summary = train(self.journal.path)
            scores = self._scores_by(scorer)
        except ImageRewardError as error:
            self.fault = str(error)
            return
        except Exception as error:  # the page has to say so; the thread has nobody else to tell
            self.fault = f"{type(error).__name__}: {error}"
            return
        with self._lock:
            self._now, self.summary = scores, copy.copy(summary)
            self._since = []

    def state(self) -> dict[str, Any]:
        """What the page shows, as plain values."""
        with self._lock:
            question = None
            if self._question is not None:
                question = {
                    "pair": list(self._question),
                    "prompt": self.candidates.prompts[self._question[0]],
                }
            predicted = [sum(each) for each in zip(*self._since)] if self._since else [0, 0]
            return {
                "question": question,
                "count": self._count,
                "pairs": len(self.candidates.pairs),
                "can_train": self._train is not None,
                "training": self.training,
                "fault": self.fault,
                "since": {"count": len(self._since), "base": predicted[0], "adapter": predicted[1]},
                "trained": None if self.summary is None else self._trained(),
            }

    def _trained(self) -> dict[str, Any]:
        keys = ("choices", "pairs", "base", "adapted", "gain", "better")
        return {key: getattr(self.summary, key) for key in keys}
