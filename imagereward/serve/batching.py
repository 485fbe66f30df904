"""One thread that runs the models: what waits together is scored together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from imagereward.errors import InputError
from imagereward.scoring.pair_scoring import check_finite, score_pixels
from imagereward.scoring.scorer import Scorer


@dataclass(eq=False)
class Job:
    """One request's rows for one model; pixels as `images.load_pixels` gives them, answered by scores [P]."""

    model: str
    prompts: list[str]
    pixels: list[tuple]
    pairs_P_2: torch.Tensor
    answer: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Takes jobs from any thread and runs them in order of arrival, several in one pass of the model.

    A batch is full with `batch_size` images, and starts when it is full or its oldest job has waited
    `window` seconds; while the model is busy, nothing is lost to waiting. A job with more images than
    that goes alone, in several passes. A cancelled job is left out. One that fails fails alone.
    `seconds_per_image` follows the recent rate.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        batch_size: int,
        window: float,
        observe: Callable[[str, int], None] = lambda model, images: None,
    ):
        self._scorers = scorers
        self._batch_size = batch_size
        self._window = window
        self._observe = observe
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.seconds_per_image = 0.0
        self._thread = threading.Thread(target=self._work, name="imagereward-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still being run."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> Future:
        """The future of the job's scores, float32 [P]; cancelling it drops the job unless it is running."""
        with self._changed:
            if self._closed:
                raise InputError("this batcher is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Run what is waiting, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            jobs = [job for job in batch if job.answer.set_running_or_notify_cancel()]
            if jobs:
                self._run(jobs)

    def _next(self) -> list[Job]:
        """The jobs of the next batch, all of one model; empty when closed and done."""
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return []
                self._changed.wait()
            first = self._jobs[0]
            deadline = first.arrived + self._window
            while not self._closed and self._waiting(first.model) < self._batch_size:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return self._take(first.model)

    def _waiting(self, model: str) -> int:
        return sum(len(job.pixels) for job in self._jobs if job.model == model and not job.answer.cancelled())

    def _take(self, model: str) -> list[Job]:
        taken: list[Job] = []
        left: deque[Job] = deque()
        room = self._batch_size
        for job in self._jobs:
            if job.model == model and (not taken or len(job.pixels) <= room):
                taken.append(job)
                room -= len(job.pixels)
            else:
                left.append(job)
        self._jobs = left
        return taken

    def _run(self, jobs: list[Job]) -> None:
        start = time.monotonic()
        scorer, model = self._scorers[jobs[0].model], jobs[0].model
        try:
            scores = self._scores(scorer, jobs)
        except Exception as error:  # whatever a model raises is some request's answer, never the thread's end
            if len(jobs) == 1:
                jobs[0].answer.set_exception(error)
            else:
                for job in jobs:
                    self._run([job])
            return
        images = sum(len(job.pixels) for job in jobs)
        rate = (time.monotonic() - start) / images
        self.seconds_per_image += (rate - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1)
        self._observe(model, images)
        for job, part in zip(jobs, scores.split([len(job.pairs_P_2) for job in jobs])):
            try:
                check_finite(model, part, lambda row: f"row {row}")
            except ArithmeticError as error:
                job.answer.set_exception(error)
            else:
                job.answer.set_result(part)

    def _scores(self, scorer: Scorer, jobs: list[Job]) -> torch.Tensor:
        pairs, images, prompts = [], 0, 0
        for job in jobs:
            pairs.append(job.pairs_P_2 + torch.tensor([images, prompts]))
            images, prompts = images + len(job.pixels), prompts + len(job.prompts)
        texts = [prompt for job in jobs for prompt in job.prompts]
        pixels: Iterable = (each for job in jobs for each in job.pixels)
        rows = torch.cat(pairs)
        return score_pixels(scorer, texts, pixels, rows, self._batch_size, scorer.head)
