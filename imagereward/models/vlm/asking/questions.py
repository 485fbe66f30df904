"""Questions about each prompt, from a file, and what their answers make of a score.

Two layouts are read. DPG-Bench's CSV (Hu et al. 2024, arXiv:2403.05135) has a row for each question, with the
questions that it depends on. GenEval 2's JSON Lines have a row for each prompt, with a list of questions.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagereward.errors import InputError, listing

MOST_BYTES = 2**28
MOST_QUESTIONS = 1000  # of a prompt
QUESTION_KEYS = ("question_natural_language", "question")
LEAST = 1e-12  # a probability of 0 in a geometric mean
YES_OR_NO = ("yes", "no")


@dataclass(frozen=True)
class Asked:
    """One question about a picture.

    text     the question
    answer   the answer that counts; "": the template's
    parents  places, among the prompt's questions, of those without whose "yes" this one counts as "no"
    """

    text: str
    answer: str = ""
    parents: tuple[int, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether the answer that counts is neither the template's, nor yes or no."""
        return bool(self.answer) and self.answer.lower() not in YES_OR_NO


def read_questions(path: Path) -> dict[str, tuple[Asked, ...]]:
    """{prompt: its questions} of a .csv file in DPG's layout, or a .json or .jsonl file in GenEval 2's.

    Raises InputError naming file and row: unreadable, a missing column, a question without text, a parent
    that is not there, questions that depend on each other in a circle.
    """
    try:
        data = path.read_bytes()
        if len(data) > MOST_BYTES:
            raise InputError(f"more than {MOST_BYTES} bytes")
        text = data.decode("utf-8-sig")
        found = _from_csv(text) if path.suffix == ".csv" else _from_json(text)
        if not found:
            raise InputError("it has no questions")
        for prompt, questions in found.items():
            if len(questions) > MOST_QUESTIONS:
                raise InputError(
                    f"{len(questions)} questions for {prompt[:40]!r}; expected at most {MOST_QUESTIONS}"
                )
            _check_order(prompt, questions)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"questions {path}: {error}") from error
    return found


def questions_of(table: Mapping[str, tuple[Asked, ...]], prompt: str, file: str) -> tuple[Asked, ...]:
    """The prompt's questions; InputError if the table has none for it."""
    if prompt not in table:
        raise InputError(
            f"{file} has no questions for the prompt {prompt[:60]!r}; it has {len(table)} prompts"
        )
    return table[prompt]


def aggregate(probabilities: Sequence[float], questions: Sequence[Asked], mean: str) -> float:
    """One score in [0, 1] of the answers' probabilities.

    A question counts as its probability where all its parents are answered so with at least 1/2, and as 0
    elsewhere, as in DSG (Cho et al. 2023, arXiv:2310.18235). mean is "arithmetic" or "geometric".
    """
    answered: dict[int, float] = {}

    def value(place: int) -> float:
        if place not in answered:
            fails = any(value(parent) < 0.5 for parent in questions[place].parents)
            answered[place] = 0.0 if fails else probabilities[place]
        return answered[place]

    values = [value(place) for place in range(len(questions))]
    if mean == "arithmetic":
        return sum(values) / len(values)
    return math.exp(sum(math.log(max(each, LEAST)) for each in values) / len(values))


def _from_csv(text: str) -> dict[str, tuple[Asked, ...]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = set(rows[0]) if rows else set()
    question = next((key for key in QUESTION_KEYS if key in columns), None)
    if missing := [key for key in ("item_id", "proposition_id", "dependency") if key not in columns]:
        raise InputError(f"no column {listing(missing)}; expected DPG's columns")
    if question is None:
        raise InputError(f"no column {' or '.join(QUESTION_KEYS)}")
    by_item: dict[str, list[dict[str, str]]] = {}
    texts: dict[str, str] = {}
    for row in rows:
        by_item.setdefault(row["item_id"], []).append(row)
        if row.get("text"):
            texts[row["item_id"]] = row["text"]
    found = {}
    for item, those in by_item.items():
        places = {_number(row["proposition_id"]): place for place, row in enumerate(those)}
        found[texts.get(item, item)] = tuple(
            Asked(_text(row[question], item), parents=_parents(row["dependency"], places, item))
            for row in those
        )
    return found


def _number(value: str | None) -> str:
    return str(value or "").strip().removesuffix(".0")


def _parents(value: str | None, places: Mapping[str, int], item: str) -> tuple[int, ...]:
    """Places of the propositions in a list such as "1,2"; "0" and nothing mean none."""
    numbers = [_number(each) for each in str(value or "").split(",")]
    wanted = [number for number in numbers if number not in ("", "0", "nan")]
    if unknown := [number for number in wanted if number not in places]:
        raise InputError(f"item {item}: a dependency on proposition {listing(unknown)}, which it has not")
    return tuple(places[number] for number in wanted)


def _from_json(text: str) -> dict[str, tuple[Asked, ...]]:
    stripped = text.strip()
    rows = (
        json.loads(stripped)
        if stripped.startswith("[")
        else [_of_line(line, number) for number, line in enumerate(stripped.split("\n"), 1) if line.strip()]
    )
    found = {}
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row.get("vqa_list"):
            raise InputError(f"row {index}: expected an object with prompt and vqa_list")
        found[row["prompt"]] = tuple(_asked(each, index) for each in row["vqa_list"])
    return found


def _of_line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON: {error}") from error


def _asked(value: Any, index: int) -> Asked:
    """A question alone, [question, answer], or {"question", "answer"}."""
    if isinstance(value, dict):
        value = [value.get("question"), value.get("answer") or ""]
    question, answer = (value, "") if isinstance(value, str) else (*value, "")[:2]
    return Asked(_text(question, f"row {index}"), _text(answer, f"row {index}") if answer else "")


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: a question or answer {value!r}; expected a text")
    return value.strip()


def _check_order(prompt: str, questions: Sequence[Asked]) -> None:
    """InputError if questions depend on each other in a circle."""
    state = [0] * len(questions)  # 0: not seen, 1: being followed, 2: done

    def follow(place: int) -> None:
        if state[place] == 1:
            raise InputError(f"{prompt[:40]!r}: questions that depend on each other in a circle")
        if state[place] == 0:
            state[place] = 1
            for parent in questions[place].parents:
                follow(parent)
            state[place] = 2

    for place in range(len(questions)):
        follow(place)
