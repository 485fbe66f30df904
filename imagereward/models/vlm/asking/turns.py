"""Turns: the tokens of a template with a prompt and images, as the model's own chat template writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imagereward.errors import InputError, listing
from imagereward.models.vlm.asking.templates import Template
from imagereward.models.vlm.backbone import EncodedImage, Row

MOST_KEPT = 4096  # conversations


@dataclass
class Turns:
    """Makes rows of tokens from a template.

    processor  a transformers processor with a chat template
    template   what is asked
    """

    processor: Any
    template: Template

    def __post_init__(self) -> None:
        added = self.processor.tokenizer.added_tokens_decoder.values()
        self._controls = [token.content for token in added if token.special and len(token.content) > 1]
        self._chats: dict[str, str] = {}  # a prompt without control tokens -> its conversation

    def as_data(self, prompt: str) -> str:
        """The prompt without control tokens: a space after the first character makes each of them plain text.

        So a prompt cannot end the user's turn, begin another, or stand for an image.
        """
        for token in self._controls:
            prompt = prompt.replace(token, f"{token[0]} {token[1:]}")
        return prompt

    def chat(self, prompt: str) -> str:
        """The conversation as text, up to where the model's answer begins, with placeholders for images."""
        prompt = self.as_data(prompt)
        if prompt not in self._chats:
            if len(self._chats) >= MOST_KEPT:
                self._chats.clear()
            self._chats[prompt] = self._written(prompt)
        return self._chats[prompt]

    def row(
        self,
        prompt: str,
        images: Sequence[EncodedImage],
        places: Sequence[int],
        known: dict[str, list[int]] | None = None,
    ) -> Row:
        """The tokens of the template with the prompt and images[place] for each of `places`.

        known  {text: its tokens} of rows before, which grows: images of one size have the same text
        """
        mark = self.processor.image_token
        first, *rest = self.chat(prompt).split(mark)
        text = first + "".join(images[place].text + part for place, part in zip(places, rest, strict=True))
        known = {} if known is None else known
        if text not in known:
            known[text] = self._tokens(text)
        ids = known[text]
        if self.template.token:
            token = self.processor.tokenizer.convert_tokens_to_ids(self.template.token)
            ids = ids[: ids.index(token) + 1]  # what follows cannot change the token's hidden state
        return Row(ids, tuple(places))

    def answer_ids(self, answers: Sequence[str]) -> list[int]:
        """The token of each answer where the model's answer begins.

        Raises InputError naming an answer that is several tokens, with those of its spellings that are one.
        """
        before = self.chat("")
        wrong = {answer: self._after(before, answer) for answer in answers}
        for answer, ids in wrong.items():
            if len(ids) != 1:
                spellings = dict.fromkeys(
                    space + word
                    for base in (answer.strip(), answer.split()[0] if answer.split() else "")
                    for word in (base, base.lower(), base.capitalize())
                    for space in ("", " ")
                )
                single = [repr(each) for each in spellings if len(self._after(before, each)) == 1]
                raise InputError(
                    f"template {self.template.name!r}: the answer {answer!r} is {len(ids)} tokens of this "
                    f"model, and "
                    f"only a first token's probability can be read; spellings that are one token: "
                    f"{listing(single) or 'none'}"
                )
        return list(dict.fromkeys(ids[0] for ids in wrong.values()))

    def case_ids(self, answer: str) -> list[int]:
        """The tokens of those spellings of an answer, in lower and upper case, that are one token.

        Raises InputError, as `answer_ids`, if none is.
        """
        before, word = self.chat(""), answer.strip()
        cased = dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
        single = [each for each in cased if len(self._after(before, each)) == 1]
        return self.answer_ids(single or [answer])

    def _after(self, before: str, answer: str) -> list[int]:
        """The tokens that `answer` adds; more than one also if it changes the tokens before it."""
        start, whole = self._tokens(before), self._tokens(before + answer)
        if whole[: len(start)] != start:
            return [*self.processor.tokenizer(answer, add_special_tokens=False).input_ids, -1]
        return whole[len(start) :]

    def _tokens(self, text: str) -> list[int]:
        bos = self.processor.tokenizer.bos_token
        special = not (bos is not None and text.startswith(bos))
        return self.processor.tokenizer(text, add_special_tokens=special).input_ids

    def _written(self, prompt: str) -> str:
        """The chat of a prompt without control tokens; thinking is off where a model can."""
        content = [
            {"type": "image"} if part is None else {"type": "text", "text": part}
            for part in self.template.parts(prompt)
        ]
        system = self.template.system.replace("{prompt}", prompt)
        said = [{"type": "text", "text": system}]
        turns: list[dict[str, Any]] = [{"role": "system", "content": said}] if system else []
        own = self.processor.chat_template or self.processor.tokenizer.chat_template
        thinking = {"enable_thinking": False} if "enable_thinking" in str(own) else {}
        text = self.processor.apply_chat_template(
            [*turns, {"role": "user", "content": content}],
            tokenize=False,
            add_generation_prompt=True,
            **thinking,
        )
        count = sum(part is None for part in self.template.parts(prompt))
        if text.count(self.processor.image_token) != count:
            raise InputError(
                f"the model's chat template writes {text.count(self.processor.image_token)} places for "
                f"images where "
                f"template {self.template.name!r} has {count}: it takes no images in a user turn"
            )
        return text
