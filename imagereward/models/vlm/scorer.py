"""VLMScorer: a vision-language model as a scorer, by one of three read-outs.

The read-outs are the probability of an answer, a reward head on a hidden state, and a verdict in the text
that the model writes. Shapes: R rows, D width of the language model, V its vocabulary, P pairs.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from imagereward.adapters.streams import TokenStream
from imagereward.config import ScorerConfig
from imagereward.errors import InputError, UnreadableVerdictWarning
from imagereward.images.reading import ImageLike, load_pixels
from imagereward.models.vlm.asking.questions import Asked, aggregate, questions_of, read_questions
from imagereward.models.vlm.asking.settings import JudgeConfig
from imagereward.models.vlm.asking.templates import TEMPLATES
from imagereward.models.vlm.asking.turns import Turns
from imagereward.models.vlm.backbone import Backbone, EncodedImage, Row
from imagereward.models.vlm.heads import RewardHead
from imagereward.models.vlm.images import VLMImages
from imagereward.models.vlm.saving import save_judge
from imagereward.models.vlm.shared_prefixes import Read, SharedStates
from imagereward.models.vlm.streams import image_prefixes, token_streams
from imagereward.models.vlm.writing import Writer
from imagereward.scoring.questions import one_each
from imagereward.scoring.scorer import Scorer

_INNER = "backbone.model.model"  # path of the towers


class VLMScorer(Scorer):
    """A judge: a vision-language model that is asked about a prompt and an image.

    model      an image-text-to-text model of transformers
    processor  its processor
    judge      what is asked, and how the score is read
    head       the reward head, for read-out "head"; default: one with random weights

    Scores: for "answer" a probability in [0, 1]; for "verdict" a number in [0, 1], NaN where the text holds
    no verdict, which is counted in `unreadable` and warned of; for "head" as the head was trained.
    """

    # The model divides the pairs itself, by their tokens and the free memory.
    pairs_per_forward = 512
    float32_prefixes: tuple[str, ...] = ("reward_head.",)  # type: ignore[assignment]

    def __init__(self, model: Any, processor: Any, judge: JudgeConfig, head: RewardHead | None = None):
        super().__init__(ScorerConfig("VLM", {"judge": judge.to_dict()}, max_length=judge.max_length))
        self.judge = judge
        self.backbone = Backbone(model, processor, judge.positions)
        self.processor = VLMImages(
            processor, judge.pixels, judge.resize == "pillow", judge.apply_exif_rotation
        )
        self.states = SharedStates(self.backbone, adapters=self.adapters)
        self.image_prefixes = image_prefixes(model, _INNER)
        self.turns = Turns(processor, judge.template)
        self.reward_head = head
        if judge.readout == "head" and head is None:
            assert judge.head is not None
            self.reward_head = RewardHead(self.backbone.text_config.hidden_size, judge.head)
        self.answer_ids = self.turns.answer_ids(judge.template.answers) if judge.readout == "answer" else []
        self.writer = Writer(self.backbone, judge) if judge.readout == "verdict" else None
        self.questions = None
        if judge.questions:
            path = Path(judge.questions).expanduser()
            self.questions = read_questions(path)
            self.files["questions"] = path.resolve()
            self.open_turns = Turns(
                processor, replace(TEMPLATES["open-question"], system=judge.template.system)
            )
        # Texts without a verdict, and all texts that were written, since the scorer was made.
        self.unreadable = 0
        self.written = 0
        self.turns.chat("")  # a chat template that fails does so now

    def token_streams(self) -> dict[str, TokenStream]:
        return token_streams(self.backbone.model, _INNER, self.writer is not None)

    @property
    def passes_gradients(self) -> bool:  # type: ignore[override]
        """Whether scores have gradients: a written verdict has none, nor have questions from a file."""
        return self.judge.readout != "verdict" and self.questions is None

    differentiable = passes_gradients  # they reach weights and pixels alike

    @property
    def may_be_nan(self) -> bool:  # type: ignore[override]
        """Whether the score is a written verdict, which may be unreadable."""
        return self.writer is not None

    @property
    def device(self) -> torch.device:
        """The device of the model's embeddings."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return self.backbone.model.dtype

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Let the backward pass of `reward` recompute the layers' activations."""
        self.backbone.set_recompute(enable)

    def compile_towers(self) -> None:
        """Compile the whole model with torch.compile, in place. InputError if it has adapters."""
        self.adapters.check_uncompiled()
        self.backbone.model.model.compile()

    def encode_images(self, batch: dict[str, list]) -> list[EncodedImage]:
        """The image features of the vision tower, one for each image."""
        return self.backbone.encode(batch)

    def image_vectors(self, features: Sequence[EncodedImage]) -> torch.Tensor:
        """float32 [B, D]: the mean of each image's features over its tokens."""
        return torch.stack([each.features.float().flatten(0, -2).mean(0) for each in features])

    def encode_prompts(self, prompts: list[str]) -> list[str]:
        """The prompts, cut to `config.max_length` tokens; whole where they only look up their questions."""
        if self.questions is not None:
            return prompts
        words = self.backbone.processor.tokenizer
        ids = [words(prompt, add_special_tokens=False).input_ids for prompt in prompts]
        most = self.config.max_length
        return [
            prompt if len(each) <= most else words.decode(each[:most]) for prompt, each in zip(prompts, ids)
        ]

    def prompt_fault(self, prompt: str) -> str | None:
        """The prompt has no questions, or one whose answer is not one token."""
        if self.questions is None:
            return None
        try:
            for question in questions_of(self.questions, prompt, self.judge.questions):
                self._ids_of(question)
        except InputError as error:
            return str(error)
        return None

    def reading(self, prompts: list[str]) -> tuple[list[int], list[bool]]:
        tokens, truncated = super().reading(prompts)
        return tokens, truncated if self.questions is None else [False] * len(prompts)

    def count_tokens(self, prompts: list[str]) -> list[int]:
        """Tokens of each prompt in the model's vocabulary, without the template's."""
        words = self.backbone.processor.tokenizer
        return [len(words(prompt, add_special_tokens=False).input_ids) for prompt in prompts]

    def stream_lengths(self, prompts: list[str]) -> list[int]:
        """The tokens of each prompt with its template, without those of an image."""
        words = self.backbone.processor.tokenizer
        return [len(words(self.turns.chat(prompt)).input_ids) for prompt in prompts]

    def head(
        self, images: Sequence[EncodedImage], prompts: Sequence[str], pairs_P_2: torch.Tensor
    ) -> torch.Tensor:
        """float32 scores [P]; for "verdict", NaN where no text held a verdict."""
        if self.questions is not None:
            return self._decomposed(images, prompts, pairs_P_2.tolist())
        known: dict[str, list[int]] = {}
        rows = [
            self.turns.row(prompts[prompt], images, [image], known) for image, prompt in pairs_P_2.tolist()
        ]
        self.check_length(rows)
        if self.writer is not None:
            return self._verdicts(rows, images)
        return self.outputs(rows, images)[:, 0]

    def _decomposed(
        self, images: Sequence[EncodedImage], prompts: Sequence[str], pairs: list[list[int]]
    ) -> torch.Tensor:
        """Scores [P]: the aggregate of the answers to each prompt's questions."""
        assert self.questions is not None
        asked = [questions_of(self.questions, prompts[prompt], self.judge.questions) for _, prompt in pairs]
        known_ids: dict[str, list[int]] = {}
        rows = [
            (self.open_turns if question.is_open else self.turns).row(
                question.text, images, [image], known_ids
            )
            for (image, _), questions in zip(pairs, asked)
            for question in questions
        ]
        self.check_length(rows)
        each_question = [question for questions in asked for question in questions]
        known = {question: self._ids_of(question) for question in dict.fromkeys(each_question)}
        ids = [known[question] for question in each_question]
        tokens = sorted({token for each in ids for token in each})
        logs = self.log_probabilities(rows, images, tokens)
        answers = iter(
            float(logs[row, [tokens.index(token) for token in each]].exp().sum())
            for row, each in enumerate(ids)
        )
        scores = [aggregate([next(answers) for _ in each], each, self.judge.aggregate) for each in asked]
        return torch.tensor(scores)

    def _ids_of(self, question: Asked) -> list[int]:
        """The tokens whose probabilities make that of a question's answer.

        An open answer counts in every case of letters; yes and no as the template's wording has them.
        """
        if question.is_open:
            return self.open_turns.case_ids(question.answer)
        named = question.answer.capitalize()
        own = {"", *(answer.strip().capitalize() for answer in self.judge.template.answers)}
        return self.answer_ids if named in own else self.turns.answer_ids([named])

    def outputs(self, rows: Sequence[Row], images: Sequence[EncodedImage]) -> torch.Tensor:
        """float32 [P, C]: the answer's probability, or the reward head's outputs."""
        return self._in_order(rows, images, self._read_out)

    def _in_order(
        self,
        rows: Sequence[Row],
        images: Sequence[EncodedImage],
        read_out: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """`read_out` of the last hidden state of every row, in the rows' order."""
        found: dict[int, torch.Tensor] = {}

        def use(read: Read) -> None:  # a row may come again, where memory was short after it
            found.update(zip(read.places, read_out(read.hidden)))

        self.states.read(rows, images, use)
        return torch.stack([found[place] for place in range(len(rows))])

    def _read_out(self, hidden_R_D: torch.Tensor) -> torch.Tensor:
        if self.reward_head is not None:
            return self.reward_head(hidden_R_D.to(self.reward_head.device))
        logits = self.backbone.logits(hidden_R_D)
        return logits.softmax(-1)[:, self.answer_ids].sum(1, keepdim=True)

    def log_probabilities(
        self, rows: Sequence[Row], images: Sequence[EncodedImage], ids: Sequence[int]
    ) -> torch.Tensor:
        """float32 log-probabilities [P, len(ids)] of tokens where the model's answer begins."""
        return self._in_order(
            rows, images, lambda hidden: self.backbone.logits(hidden).log_softmax(-1)[:, list(ids)]
        )

    def written_texts(
        self, prompts: Sequence[str], images: Sequence[ImageLike], batch_size: int = 8
    ) -> list[list[str]]:
        """The `judge.samples` texts that the model writes about prompt i and image i, for each i.

        batch_size  images in one pass of the vision tower

        Raises InputError for unequal numbers, and for a read-out that writes nothing.
        """
        if self.writer is None:
            raise InputError(f"{self.name} writes nothing: its readout is {self.judge.readout!r}")
        rows = one_each(prompts, list(images))
        texts: list[list[str]] = []
        loaded = load_pixels(rows.images, self.processors)
        with contextlib.closing(loaded), torch.inference_mode(), self.evaluating():
            while block := list(islice(loaded, batch_size)):
                encoded = self.encode_pixels([self.processor.collate([item for (item,) in block])])
                asked = rows.prompts[len(texts) : len(texts) + len(block)]
                turns = [self.turns.row(prompt, encoded, [at]) for at, prompt in enumerate(asked)]
                texts += self.writer.write(self.states, turns, encoded)
        return texts

    def save_pretrained(self, directory: str | os.PathLike) -> Path:
        """Write the model as transformers does, its processor, `judge.json` and the reward head."""
        return save_judge(self, Path(directory).expanduser())

    def check_length(self, rows: Sequence[Row]) -> None:
        """InputError if a text with its image is longer than the model reads."""
        most = getattr(self.backbone.text_config, "max_position_embeddings", None)
        longest = max(len(row.ids) for row in rows)
        if most is not None and longest > most:
            raise InputError(
                f"{self.name}: a text with its image has {longest} tokens and the model reads {most}; lower "
                "the second of pixels=, or max_length="
            )

    def _verdicts(self, rows: Sequence[Row], images: Sequence[EncodedImage]) -> torch.Tensor:
        assert self.writer is not None
        assert self.judge.template.grammar is not None
        texts = self.writer.write(self.states, rows, images)
        grammar = self.judge.template.grammar
        scores = torch.tensor([grammar.mean_score(each) for each in texts])
        bad = [text for each in texts for text in each if grammar.numbers(text) is None]
        self.unreadable += len(bad)
        self.written += sum(len(each) for each in texts)
        if bad:
            warnings.warn(
                f"{self.name}: {len(bad)} of {sum(map(len, texts))} texts hold no verdict in the form of "
                f"template {self.judge.template.name!r}, such as {bad[0][:80]!r}; they count as NaN",
                UnreadableVerdictWarning,
                stacklevel=2,
            )
        return scores
