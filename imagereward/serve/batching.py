"""Dynamic batching: one thread runs the models and scores waiting requests together."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from imagereward.errors import InputError
from imagereward.scoring.pair_scoring import score_pixels
from imagereward.scoring.scorer import Scorer


@dataclass(eq=False)
class ScoringRequest:
    """One request's pairs for one model, and the future of their scores, float32 [P].

    pixels      per image a tuple with uint8 [3, S, S] (HPS: float) for each of the scorer's preprocesses
    pairs_P_2   int64 (image, prompt) indices of each score
    arrived     time.monotonic() seconds
    """

    model: str
    prompts: list[str]
    pixels: list[tuple]
    pairs_P_2: torch.Tensor
    answer: Future = field(default_factory=Future)
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """Takes requests from any thread and runs them in order of arrival, several in one pass of the model.

    A batch is full with `batch_size` images, and starts when it is full or its oldest request has waited
    `window` seconds; requests that arrive while the model is busy form the next batch. A request with more
    images than `batch_size` is scored alone, in several passes. A cancelled request is left out. If a batch
    fails, its requests are scored one by one, so that only the faulty one gets the exception. Scores are NaN
    where the scorer `may_be_nan`.
    `seconds_per_image` is a moving average (weight 0.2) over batches; 0 before the first.

    observe   called with (model, images) after each batch
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
        self._requests: deque[ScoringRequest] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.seconds_per_image = 0.0
        self._thread = threading.Thread(target=self._work, name="imagereward-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the model thread runs."""
        return self._thread.is_alive()

    def submit(self, request: ScoringRequest) -> Future:
        """Queue a request; returns the future of its scores, float32 [P].

        Cancelling the future drops the request unless it is being scored. InputError once closed.
        """
        with self._changed:
            if self._closed:
                raise InputError("the server is closing: it takes no more requests")
            self._requests.append(request)
            self._changed.notify()
        request.answer.add_done_callback(self._forget)
        return request.answer

    def _forget(self, answer: Future) -> None:
        """Take a cancelled request out of the queue, so that its images leave memory."""
        if answer.cancelled():
            with self._changed:
                self._requests = deque(each for each in self._requests if each.answer is not answer)

    def close(self) -> None:
        """Score the waiting requests, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            requests = [request for request in batch if request.answer.set_running_or_notify_cancel()]
            if requests:
                self._run(requests)
            del batch, requests  # otherwise their images stay until the next batch

    def _next(self) -> list[ScoringRequest]:
        """Wait for the next batch: requests of one model. Empty once closed and nothing waits."""
        with self._changed:
            while True:
                while not self._requests:
                    if self._closed:
                        return []
                    self._changed.wait()
                first = self._requests[0]
                model, deadline = first.model, first.arrived + self._window
                del first  # it may be cancelled meanwhile
                while not self._closed and self._waiting(model) < self._batch_size:
                    if (left := deadline - time.monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                if batch := self._take(model):  # empty: all were cancelled meanwhile
                    return batch

    def _waiting(self, model: str) -> int:
        return sum(
            len(request.pixels)
            for request in self._requests
            if request.model == model and not request.answer.cancelled()
        )

    def _take(self, model: str) -> list[ScoringRequest]:
        taken: list[ScoringRequest] = []
        left: deque[ScoringRequest] = deque()
        free_images = self._batch_size
        for request in self._requests:
            if request.model == model and (not taken or len(request.pixels) <= free_images):
                taken.append(request)
                free_images -= len(request.pixels)
            else:
                left.append(request)
        self._requests = left
        return taken

    def _run(self, requests: list[ScoringRequest]) -> None:
        start = time.monotonic()
        scorer, model = self._scorers[requests[0].model], requests[0].model
        try:
            scores = self._scores(scorer, requests)
        except Exception as error:  # any exception is the answer to its request and must not end the thread
            if len(requests) == 1:
                requests[0].answer.set_exception(error)
            else:
                for request in requests:
                    self._run([request])
            return
        images = sum(len(request.pixels) for request in requests)
        rate = (time.monotonic() - start) / images
        self.seconds_per_image += (rate - self.seconds_per_image) * (0.2 if self.seconds_per_image else 1)
        self._observe(model, images)
        for request, part in zip(requests, scores.split([len(request.pairs_P_2) for request in requests])):
            try:
                scorer.check_scores(part, lambda row: f"row {row}")
            except ArithmeticError as error:
                request.answer.set_exception(error)
            else:
                request.answer.set_result(part)

    def _scores(self, scorer: Scorer, requests: list[ScoringRequest]) -> torch.Tensor:
        pairs, images, prompts = [], 0, 0
        for request in requests:
            pairs.append(request.pairs_P_2 + torch.tensor([images, prompts]))
            images, prompts = images + len(request.pixels), prompts + len(request.prompts)
        texts = [prompt for request in requests for prompt in request.prompts]
        pixels: Iterable = (each for request in requests for each in request.pixels)
        rows = torch.cat(pairs)
        return score_pixels(scorer, texts, pixels, rows, self._batch_size, scorer.head)
