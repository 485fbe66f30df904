"""Saved: the directory of the adapter that learns, which this page replaces only if it made it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagereward.adapters.base import Adapter
from imagereward.adapters.files import WEIGHTS_FILE, read_adapter
from imagereward.choosing.session import Records, ScoreAll, Trained
from imagereward.errors import CheckpointError, InputError
from imagereward.scoring.scorer import Scorer
from imagereward.writing import replacing

# Says from which choices the page made the adapter that is beside it.
MARK_FILE = "choosing.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Saved:
    """An adapter on the disk: at most one, which was `Summary.ahead` of its base on held-out choices.

    path     its directory
    choices  the file of choices that it learns from
    kind     the kind of adapter
    """

    path: Path
    choices: Path
    kind: str

    @property
    def name(self) -> str:
        """The adapter's name: that of its directory, with what a name cannot hold replaced by "-"."""
        name = self.path.resolve().name
        return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)

    def check(self) -> None:
        """InputError, naming a free path, unless the directory is empty or of these choices and kind."""
        if self.path.exists() and not self.path.is_dir():
            raise self._taken("is a file; expected a directory for the adapter")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not (self.path / MARK_FILE).is_file():
            raise self._taken("holds something that `imagereward choose` did not make")
        if (found := self._mark()["choices"]) != self._mark_for([])["choices"]:
            raise self._taken(f"holds the adapter of other choices, {os.path.normpath(self.path / found)}")
        if not (self.path / WEIGHTS_FILE).is_file():
            return  # stopped before the adapter was written
        try:
            kind = read_adapter(self.path)[0].kind
        except CheckpointError as error:
            raise self._taken(f"cannot be gone on with: {error}") from error
        if kind != self.kind:
            raise self._taken(f"holds an adapter of kind {kind}, and --kind is {self.kind}")

    def restore(self, scorer: Scorer, score: ScoreAll) -> Trained | None:
        """What was saved, with new scores of the candidates and without refits; None if nothing was.

        The scorer is afterwards as before. Raises InputError for an adapter of another scorer.
        """
        if not all((self.path / name).is_file() for name in (WEIGHTS_FILE, SUMMARY_FILE)):
            return None  # nothing, or a saving that was stopped
        from imagereward.tuning.personal.summary import Summary

        try:
            summary = Summary(**json.loads((self.path / SUMMARY_FILE).read_text(encoding="utf-8")))
            scorer.add_adapter(self.path, name=self.name)
        except (CheckpointError, OSError, TypeError, ValueError) as error:
            raise self._taken(f"cannot be gone on with: {error}") from error
        try:
            return Trained(summary, self._mark()["learned"], score(scorer), [])
        finally:
            scorer.remove_adapter(self.name)

    def save(self, adapter: Adapter, summary: Any, records: Records) -> Any:
        """Write the adapter of these choices instead of what is there; returns the summary with its size.

        InputError as by `check`.
        """
        from imagereward.tuning.personal.train import save_result

        self.check()
        with replacing(self.path / MARK_FILE) as file:
            file.write_text(json.dumps(self._mark_for(records), ensure_ascii=False) + "\n", encoding="utf-8")
        return save_result(adapter, summary, self.path)

    def _mark_for(self, records: Records) -> dict[str, Any]:
        try:
            choices = os.path.relpath(self.choices.resolve(), self.path.resolve())
        except ValueError:  # on another drive of Windows
            choices = str(self.choices.resolve())
        keys = ("prompt", "images", "ranking")
        return {
            "choices": Path(choices).as_posix(),
            "learned": [{key: record[key] for key in keys} for record in records],
        }

    def _mark(self) -> dict[str, Any]:
        try:
            mark = json.loads((self.path / MARK_FILE).read_text(encoding="utf-8"))
            valid = isinstance(mark["choices"], str) and all(
                isinstance(each["prompt"], str)
                and isinstance(each["ranking"], list)
                and all(isinstance(name, str) for name in each["images"])
                for each in mark["learned"]
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            valid = False
        if not valid:
            raise self._taken(f"has a {MARK_FILE} that cannot be read")
        return mark

    def _taken(self, why: str) -> InputError:
        number = 2
        while (free := self.path.with_name(f"{self.path.name}-{number}")).exists():
            number += 1
        return InputError(f"--adapter {self.path} {why}; it stays as it is: choose another, such as {free}")
