"""What a training tells the person who started it: its plan, how long it takes, and its outcome."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tqdm import tqdm

log = logging.getLogger(__name__)

# Updates after which the rest is estimated; the first of them, which is slower, is not counted.
FIRST_UPDATES = 3


def tell(text: str) -> None:
    """Log the text where logging shows it, and write it to stderr, above progress bars, where not."""
    if log.isEnabledFor(logging.INFO) and log.hasHandlers():
        log.info("%s", text)
    else:
        tqdm.write(text, file=sys.stderr)


def facts(title: str, values: Mapping[str, str]) -> str:
    """A title, and under it the values with their names in a column."""
    width = max(map(len, values))
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in values.items())])


def duration(seconds: float) -> str:
    """`0.35 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def headline(metrics: Mapping[str, float]) -> dict[str, str]:
    """What a progress bar shows: the reward, whose loss says little, or the loss where there is no reward."""
    names = ["reward"] if "reward" in metrics else ["loss"]
    names += [name for name in ("failed", "kl", "distance") if metrics.get(name)]
    return {name: f"{metrics[name]:.4g}" for name in names if name in metrics}


class Pace:
    """Estimates how long the rest of a training takes, from its first updates and its last evaluation.

    `evaluate_every` counts updates; 0: there are no evaluations.
    """

    def __init__(self, start: int, updates: int, evaluate_every: int):
        self.start, self.updates, self.every = start, updates, evaluate_every
        self.evaluation: float | None = None  # seconds of the last one
        self._counted = time.monotonic()  # when the counted updates began
        self._evaluating = 0.0  # seconds of evaluations since

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, time is an evaluation's, not an update's."""
        began = time.monotonic()
        yield
        self.evaluated(time.monotonic() - began)

    def evaluated(self, seconds: float) -> None:
        """An evaluation took so long."""
        self.evaluation = seconds
        self._evaluating += seconds

    def after(self, done: int) -> str:
        """The estimate, once `done` updates make it possible; "" before and afterwards."""
        taken = done - self.start
        if taken == 1:
            self._counted, self._evaluating = time.monotonic(), 0.0
        if taken != FIRST_UPDATES or done >= self.updates:
            return ""
        each = (time.monotonic() - self._counted - self._evaluating) / (FIRST_UPDATES - 1)
        left, rest = self.updates - done, f"{self.updates - done} more updates of {duration(each)}"
        if not self.every:
            return f"{rest} take about {duration(left * each)}"
        evaluations = -(-self.updates // self.every) - done // self.every
        if self.evaluation is None:
            return f"{rest} take about {duration(left * each)}, evaluations not counted"
        rest += f" and {evaluations} evaluations of {duration(self.evaluation)}"
        return f"{rest} take about {duration(left * each + evaluations * self.evaluation)}"
