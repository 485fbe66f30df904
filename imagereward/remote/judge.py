"""ChatJudge: a vision-language model behind an OpenAI-compatible address, asked about prompts and images.

vLLM, SGLang, `transformers serve` and hosted models speak this protocol. The key comes from an environment
variable alone, and is in no message, log, copy or pickle.
"""

import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from imagereward.config import whole_number
from imagereward.errors import (
    InputError,
    RemoteError,
    UnreadableVerdictWarning,
)
from imagereward.models.vlm.asking.templates import Template, template_of
from imagereward.remote.chat import (
    MOST_LISTED,
    Reply,
    data_url,
    probability,
    request_of,
)
from imagereward.remote.chat_client import ChatClient
from imagereward.remote.threads import in_threads
from imagereward.scoring.api import PairScorer
from imagereward.scoring.questions import Rows, Scored, one_each

KEY_VARIABLE = "OPENAI_API_KEY"
CHARACTERS_PER_TOKEN = 4  # of English, for the plan before a run


class ChatJudge(PairScorer):
    """A judge at an address, with the verbs of `PairScorer`.

    url           the address up to the version, such as "http://127.0.0.1:8000/v1"
    model         the model's name there
    template      a name, a file or a `Template`. One with a grammar reads written verdicts; one with answers
                  reads the first token's log-probabilities, which the server has to offer
    key_variable  environment variable with the key; none is sent if it is not set
    timeout       seconds to wait for an answer
    retries       of a request that found the server full, restarting or gone
    connections   requests at a time
    requests      most requests in this object's life, tries that failed included; None: no limit
    tokens        most tokens, read and written, as the server counts them; None: no limit. Requests under way
                  when it is reached may exceed it
    prices        (read, written): price of a million tokens, for the plan that is printed; None: none
    new_tokens    most tokens that are written about a pair
    samples       texts for a pair; their scores are averaged
    temperature   of sampling

    A pair that failed has the score NaN in `pixel_rewards`; the verbs raise RemoteError with the causes. A
    text without a verdict is NaN, warned of and counted in `unreadable`; so is a reply that lists none of the
    answers among its likely first tokens. `used` counts requests and tokens.
    """

    may_be_nan = True

    def __init__(
        self,
        url: str,
        model: str,
        *,
        template: str | Path | Template = "rubric",
        key_variable: str = KEY_VARIABLE,
        timeout: float = 120.0,
        retries: int = 5,
        connections: int = 8,
        requests: int | None = None,
        tokens: int | None = None,
        prices: tuple[float, float] | None = None,
        new_tokens: int = 64,
        samples: int = 1,
        temperature: float = 0.0,
    ):
        self.client = ChatClient(
            url,
            key_variable,
            timeout,
            whole_number("retries", retries, 0),
            None if tokens is None else whole_number("tokens", tokens, 0),
            None if requests is None else whole_number("requests", requests, 0),
        )
        self.url = self.client.url
        self.name, self.template = model, template_of(template)
        if self.template.compares or not (self.template.grammar or self.template.answers):
            raise InputError(
                f"template {self.template.name!r} gives no score of one image: expected a grammar, or answers"
            )
        self.connections = whole_number("connections", connections, 1)
        self.unreadable = 0
        self._offers = False  # whether a reply has had log-probabilities
        self._planned = 1  # most pairs of a call whose plan was printed
        self.prices = prices
        self.samples = whole_number("samples", samples, 1)
        if samples > 1 and temperature == 0:
            raise InputError(f"samples={samples} at temperature=0 are all the same; give a temperature")
        self.options: dict[str, Any] = {"max_tokens": new_tokens, "temperature": temperature}
        if self.template.grammar is None:
            self.options |= {"max_tokens": 1, "logprobs": True, "top_logprobs": MOST_LISTED}

    @property
    def used(self) -> dict[str, int]:
        """Requests, tokens read and tokens written, so far."""
        return self.client.used

    def __repr__(self) -> str:
        return f"ChatJudge({self.url!r}, model={self.name!r}, template={self.template.name!r})"

    def plan(self, rows: int, characters: int | None = None) -> str:
        """The requests, the tokens and, with `prices`, about what so many pairs cost."""
        count = rows * self.samples
        text = count * len(self.template.text + self.template.system) + (characters or 0) * self.samples
        read, written = text // CHARACTERS_PER_TOKEN, count * self.options["max_tokens"]
        beside = "" if characters is not None else " beside the prompts"
        told = (
            f"{self.name}: {count} requests, about {read} tokens of text{beside} and {count} images to read, "
        )
        told += f"at most {written} tokens to write"
        if self.prices is None:
            return told + "; give prices= to see the cost"
        cost = (read * self.prices[0] + written * self.prices[1]) / 1e6
        rest = "the images" if characters is not None else "the prompts and images"
        return f"{told}: about {cost:.4f} beside {rest}, which the server counts in tokens of its own"

    def written_texts(self, prompts: Sequence[str], images: Sequence[Any]) -> list[list[str]]:
        """The `samples` texts that the model writes about prompt i and image i, for each i.

        Raises InputError for unequal numbers, RemoteError if a request fails.
        """
        rows = one_each(prompts, list(images))
        self._check_budget(len(images) * self.samples)
        return [
            [
                self.client.reply(request_of(self.template, self.name, prompt, [url], self.options)).text
                for _ in range(self.samples)
            ]
            for prompt, url in zip(rows.prompts, [data_url(each, at) for at, each in enumerate(rows.images)])
        ]

    def _scored(self, rows: Rows, batch_size: int | None) -> Scored:
        scores, causes, permanent = self._answers(rows)
        if causes:
            row, cause = next(iter(causes.items()))
            raise RemoteError(
                f"{self.url} gave no score for {len(causes)} of {len(scores)} pairs; row {row}: {cause}",
                causes,
                torch.tensor(scores),
                permanent,
            )
        unread = [0] * len(rows.prompts)
        return Scored(torch.tensor(scores, dtype=torch.float32, device="cpu"), unread, [False] * len(unread))

    def pixel_rewards(
        self, pixels_B_3_H_W: torch.Tensor, prompts: Sequence[str], rows: Sequence[Any] | None = None
    ) -> torch.Tensor:
        """Scores [B], NaN for images without one; RemoteError if no request was answered."""
        try:
            return super().pixel_rewards(pixels_B_3_H_W, prompts, rows)
        except RemoteError as error:
            if error.scores is None or not bool(torch.as_tensor(error.scores).isfinite().any()):
                raise
            return torch.as_tensor(error.scores, dtype=torch.float32)

    def _answers(self, rows: Rows) -> tuple[list[float], dict[int, str], bool]:
        """(score of each pair, causes by row of those without an answer, whether all are permanent)."""
        pairs = rows.pairs_P_2.tolist()
        if not pairs:
            raise InputError(f"nothing to score: {len(rows.prompts)} prompts and {len(rows.images)} images")
        self._check_budget(len(pairs) * self.samples)
        urls = [data_url(image, index) for index, image in enumerate(rows.images)]
        if len(pairs) > self._planned:
            self._planned = len(pairs)
            characters = sum(len(rows.prompts[prompt]) for _, prompt in pairs)
            print(f"imagereward: {self.plan(len(pairs), characters)}", file=sys.stderr)
        causes: dict[int, str] = {}
        passing: list[int] = []
        unread: list[str] = []
        bare: list[Reply] = []

        def score(row: int) -> float:
            image, prompt = pairs[row]
            body = request_of(self.template, self.name, rows.prompts[prompt], [urls[image]], self.options)
            try:
                replies = [self.client.reply(body) for _ in range(self.samples)]
            except RemoteError as error:
                if "logprobs" in self.options and "logprobs" in str(error):
                    raise InputError(f"{self._no_probabilities()} ({error})") from error
                causes[row] = str(error)
                passing.extend([] if error.permanent else [row])
                return math.nan
            return self._score(replies, unread, bare)

        scores = in_threads(score, range(len(pairs)), self.connections)
        if bare and not self._offers:
            raise InputError(self._no_probabilities())
        self._tell_unread(unread, len(pairs) * self.samples)
        return scores, causes, not passing

    def _score(self, replies: Sequence[Reply], unread: list[str], bare: list[Reply]) -> float:
        """The mean score of the replies that have one; NaN if none has.

        unread  gets the texts of the others
        bare    gets the replies without log-probabilities; InputError once there are many, and no others
        """
        grammar, found = self.template.grammar, []
        for reply in replies:
            if grammar is not None:
                value = grammar.score(reply.text)
            elif reply.first is not None:
                self._offers = True
                value = probability(reply.first, self.template.answers)
            else:
                bare.append(reply)
                if len(bare) > self.connections and not self._offers:
                    raise InputError(self._no_probabilities())
                value = math.nan
            if math.isnan(value):
                unread.append(reply.text)
            else:
                found.append(value)
        return sum(found) / len(found) if found else math.nan

    def _tell_unread(self, unread: Sequence[str], count: int) -> None:
        self.unreadable += len(unread)
        if unread:
            lack = f"texts hold no verdict in the form of template {self.template.name!r}"
            if self.template.grammar is None:
                answers = ", ".join(self.template.answers)
                lack = f"replies list none of {answers} among the likeliest first tokens"
            warnings.warn(
                f"{self.name}: {len(unread)} of {count} {lack}, such as {unread[0][:80]!r}; they count as "
                "NaN",
                UnreadableVerdictWarning,
                stacklevel=2,
            )

    def _no_probabilities(self) -> str:
        return (
            f"{self.url} gives no log-probabilities, which template {self.template.name!r} is read by: take "
            "a template with a written verdict, such as template='rubric'"
        )

    def _check_budget(self, count: int) -> None:
        """InputError before anything is sent, if `count` requests are more than are left."""
        most = self.client.requests
        left = None if most is None else most - self.client.used["requests"]
        if left is not None and count > left:
            raise InputError(f"{count} requests, and {left} are left of requests={most}")


def is_chat_address(url: str, options: Any) -> bool:
    """Whether `connect` is to ask a chat: its address ends with a version, or a template is given."""
    return "template" in options or str(url).rstrip("/").rpartition("/")[2] in ("v1", "v2", "v3")
