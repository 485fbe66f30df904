"""Messages of a training to the person who started it: layout, progress bar, and remaining time."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)

# Updates after which the remaining time is estimated, from all of them but the first, which is slower.
FIRST_UPDATES = 3


def tell(text: str) -> None:
    """Log the text if logging shows level INFO; otherwise write it to stderr, above progress bars."""
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", text)
    else:
        tqdm.write(text, file=sys.stderr)


def facts(title: str, values: Mapping[str, str]) -> str:
    """The title, and below it a line for each value, with names and values in two columns."""
    width = max(map(len, values))
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in values.items())])


def duration(seconds: float) -> str:
    """Seconds in words: "0.35 s", "42 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def headline(metrics: Mapping[str, float]) -> dict[str, str]:
    """The metrics for a progress bar: the reward, or without a reward the loss; and failed, kl, distance."""
    names = ["reward"] if "reward" in metrics else ["loss"]
    names += [name for name in ("failed", "kl", "distance") if metrics.get(name)]
    return {name: f"{metrics[name]:.4g}" for name in names if name in metrics}


class Pace:
    """Estimates the remaining time of a training, from its first updates and its last evaluation.

    start           updates done before this run started, above 0 for a resumed run
    updates         updates of the whole training
    evaluate_every  updates from one evaluation to the next; 0: there are no evaluations
    """

    def __init__(self, start: int, updates: int, evaluate_every: int):
        self.start, self.updates, self.every = start, updates, evaluate_every
        self.evaluation: float | None = None  # seconds of the last evaluation
        self._counted = time.monotonic()  # time at the start of the updates that count
        self._evaluating = 0.0  # seconds of evaluations since then

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A context whose time counts as an evaluation's, not as an update's."""
        began = time.monotonic()
        yield
        self.evaluated(time.monotonic() - began)

    def evaluated(self, seconds: float) -> None:
        """Count an evaluation that took `seconds`."""
        self.evaluation = seconds
        self._evaluating += seconds

    def after(self, done: int) -> str:
        """The estimate in words after FIRST_UPDATES updates of this run; "" after any other update.

        done  updates of the training that are done; call this after every update
        """
        taken = done - self.start
        if taken == 1:
            self._counted, self._evaluating = time.monotonic(), 0.0
        if taken != FIRST_UPDATES or done >= self.updates:
            return ""
        each = (time.monotonic() - self._counted - self._evaluating) / (FIRST_UPDATES - 1)
        left, rest = self.updates - done, f"{self.updates - done} more updates of {duration(each)}"
        if not self.every:
            return f"{rest} take about {duration(left * each)}"
        # The evaluation after `done` updates, if there is one, is still to come.
        evaluations = -(-self.updates // self.every) - (done - 1) // self.every
        if self.evaluation is None:
            return f"{rest} take about {duration(left * each)}, evaluations not counted"
        rest += f" and {evaluations} evaluations of {duration(self.evaluation)}"
        return f"{rest} take about {duration(left * each + evaluations * self.evaluation)}"
