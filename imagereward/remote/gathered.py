"""Gathered: the scores of one call of a verb, from the answers to its requests."""

import math
from typing import Any

import numpy as np
import torch

from imagereward.errors import RemoteError, listing
from imagereward.images.reading import name_of
from imagereward.remote.protocol import Failed, Part
from imagereward.scoring.questions import Rows, Scored


class Gathered:
    """Gathers the scores of one call of a verb; several threads may use it, each with its own parts."""

    def __init__(self, rows: Rows, server: str):
        self._rows = rows
        self._server = server
        self._scores = np.full(len(rows.pairs_P_2), np.nan, dtype=np.float32)
        self._causes: dict[int, str] = {}
        self._refused: set[int] = set()  # rows whose content is at fault
        self._tokens: dict[str, tuple[int, bool]] = {}
        self.stopped_by: str | None = None  # the cause, if no further request can succeed

    def put(self, part: Part, answer: Any) -> None:
        """Store the server's answer to a part; Failed if the answer lacks scores of the part's rows."""
        try:
            errors = {int(row): str(cause) for row, cause in answer.get("errors", {}).items()}
            if not errors.keys() <= set(range(len(part.rows))):
                raise ValueError(f"errors of rows {listing(errors)}, of {len(part.rows)}")
            scores = [math.nan if row in errors else each for row, each in enumerate(answer["scores"])]
            read = list(zip(answer["tokens"], answer["truncated"], strict=True))
            if len(scores) != len(part.rows) or len(read) != len(part.prompts):
                raise ValueError(f"{len(scores)} scores for {len(part.rows)} rows")
            given = (score for row, score in enumerate(scores) if row not in errors)
            if not all(isinstance(score, (int, float)) and math.isfinite(score) for score in given):
                raise ValueError("scores that are no finite numbers")
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise Failed(f"its answer is not one of a reward server: {error!r}", stop_all=True) from error
        self._scores[part.rows] = scores
        self._causes |= {part.rows[row]: cause for row, cause in errors.items()}
        self._refused |= {part.rows[row] for row in errors}
        for prompt, known in zip(part.prompts, read):
            self._tokens[self._rows.prompts[prompt]] = known

    def fail(self, part: Part, failed: Failed) -> list[Part]:
        """The parts to send again after a failure; the cause is stored for rows that are not sent again."""
        places = range(len(part.images))
        if failed.halve and (halves := part.halves()):
            return halves
        if failed.refused and not failed.images:
            self._refused.update(part.rows)
        if failed.stop_all:
            self.stopped_by = failed.cause
        faulty = {place: fault for place, fault in failed.images.items() if place in places}
        for row, (image, _) in zip(part.rows, part.pairs):
            if not faulty:
                self._causes[row] = failed.cause
            elif image in faulty:
                index = part.images[image]
                self._causes[row] = f"{name_of(self._rows.images[index], index)} {faulty[image]}"
                self._refused.add(row)
        rest = part.of(place for place in places if place not in faulty)
        return [rest] if faulty and rest.rows and not failed.stop_all else []

    def scored(self) -> Scored:
        """The scores of all rows; RemoteError naming the rows without a score, with causes."""
        for row in np.flatnonzero(np.isnan(self._scores)).tolist():
            self._causes.setdefault(row, f"not sent, because {self.stopped_by}")
        if self._causes:
            rows_of: dict[str, list[int]] = {}
            for row, cause in sorted(self._causes.items()):
                rows_of.setdefault(cause, []).append(row)
            faults = "".join(
                f"\n  row {listing(rows, 5)}: {cause}" for cause, rows in list(rows_of.items())[:8]
            )
            more = f"\n  and {len(rows_of) - 8} causes more" if len(rows_of) > 8 else ""
            message = f"{self._server}: {len(self._causes)} of {len(self._scores)} rows have no score "
            message += f"(`causes` has all reasons, `scores` the rest):{faults}{more}"
            permanent = self._refused >= self._causes.keys()
            raise RemoteError(message, self._causes, self._scores, permanent)
        read = [self._tokens[prompt] for prompt in self._rows.prompts]
        tokens, truncated = [count for count, _ in read], [cut for _, cut in read]
        return Scored(torch.from_numpy(self._scores), tokens, truncated)
