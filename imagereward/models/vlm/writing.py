"""Writer: the text that a model writes after a turn, with the turn's states shared as for other read-outs.

transformers' `generate` would encode the whole turn again for every row.
"""

import hashlib
from collections.abc import Sequence

import torch

from imagereward.models.vlm.asking.settings import JudgeConfig
from imagereward.models.vlm.backbone import Backbone, Block, EncodedImage, Row
from imagereward.models.vlm.shared_prefixes import Read, SharedStates


class Writer:
    """Writes up to `judge.new_tokens` tokens after each row, until an end token.

    Greedy at temperature 0; else each token is drawn from softmax(logits / temperature). The draws of a row
    depend on its tokens and the sample's number, not on the other rows.
    """

    def __init__(self, backbone: Backbone, judge: JudgeConfig):
        self.backbone = backbone
        self.judge = judge
        settings = getattr(backbone.model, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        given = ends if isinstance(ends, (list, tuple)) else [ends]
        self.ends = {end for end in (*given, backbone.processor.tokenizer.eos_token_id) if end is not None}

    def write(
        self, states: SharedStates, rows: Sequence[Row], images: Sequence[EncodedImage]
    ) -> list[list[str]]:
        """The texts of each row, `judge.samples` of them, without special tokens."""
        # A sample of a row is a row of its own: equal rows share everything but their last token.
        copies = [row for row in rows for _ in range(self.judge.samples)]
        written: dict[int, list[int]] = {}

        def use(read: Read) -> None:
            sources = [self._generator(copies[place], place % self.judge.samples) for place in read.places]
            written.update(zip(read.places, self._continue(read, sources)))

        with torch.no_grad():
            states.read(copies, images, use, keep=True)
        words = self.backbone.processor.tokenizer
        texts = [words.decode(written[place], skip_special_tokens=True) for place in range(len(copies))]
        size = self.judge.samples
        return [texts[start : start + size] for start in range(0, len(texts), size)]

    def _continue(self, read: Read, sources: Sequence[torch.Generator]) -> list[list[int]]:
        """The tokens that follow each row, without the end token."""
        hidden, state = read.hidden, read.state
        written: list[list[int]] = [[] for _ in read.places]
        done = [False] * len(written)
        for step in range(self.judge.new_tokens):
            tokens = self._choose(self.backbone.logits(hidden), sources)
            for at, token in enumerate(tokens):
                done[at] = done[at] or token in self.ends
                if not done[at]:
                    written[at].append(token)
            if all(done) or step + 1 == self.judge.new_tokens:
                break
            blocks = [Block([token], at + step, ()) for token, at in zip(tokens, read.positions)]
            hidden, state = self.backbone.extend(state, blocks, (), keep=True)
        return written

    def _choose(self, logits_R_V: torch.Tensor, sources: Sequence[torch.Generator]) -> list[int]:
        if self.judge.temperature == 0:
            return logits_R_V.argmax(-1).tolist()
        probabilities = (logits_R_V / self.judge.temperature).softmax(-1).cpu()
        return [
            int(torch.multinomial(each, 1, generator=source)) for each, source in zip(probabilities, sources)
        ]

    def _generator(self, row: Row, sample: int) -> torch.Generator:
        """Random numbers of a row's sample."""
        digest = hashlib.sha256(repr((self.judge.seed, sample, row.ids)).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
