"""SharedStates: hidden states of rows, where what rows have in common is computed once.

Two things are shared: the tokens before the first image, by all rows (a system turn, an instruction), and the
tokens up to and after an image, by the rows of that image as far as they agree. So an image whose place is
before the prompt meets the language model once, whatever the number of prompts.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from imagereward.adapters.collection import Adapters
from imagereward.errors import ModelMemoryError
from imagereward.models.vlm.backbone import Backbone, Block, EncodedImage, Row, State
from imagereward.models.vlm.streams import at_positions

# Fewest tokens before the first image that are worth a computation of their own.
LEAST_SHARED = 8
CPU_BYTES = 2**30  # for the activations, keys and values of the rows in one pass


LOADS = "imagereward_loads"  # attribute of a model: how often weights were loaded into it


def _count_load(model: Any, _: Any) -> None:
    """A hook for when a model's weights have been loaded."""
    setattr(model, LOADS, getattr(model, LOADS, 0) + 1)


class Read(NamedTuple):
    """Some rows that passed the model.

    places     their places among all rows
    hidden     the last hidden state of each [R, D]
    positions  the rotary positions [A, 1] of the token that would follow each
    state      for tokens that follow; None if it was not kept
    """

    places: list[int]
    hidden: torch.Tensor
    positions: list[torch.Tensor]
    state: State | None


Use = Callable[[Read], None]


@dataclass
class SharedStates:
    """Hidden states of rows with a backbone.

    backbone   the model
    share      whether common beginnings are computed once; it changes nothing but time
    at_once    whether all rows pass the model together, whatever memory is free. Processes that hold shards
               of the weights must call the model equally often
    adapters   the scorer's. Where one changes the last tokens of a row, every row passes the model whole
    """

    backbone: Backbone
    share: bool = True
    at_once: bool = False
    adapters: Adapters = field(default_factory=Adapters)
    _beginning: tuple[tuple, State] | None = None

    def __post_init__(self) -> None:
        self.backbone.model.register_load_state_dict_post_hook(_count_load)

    def read(
        self, rows: Sequence[Row], images: Sequence[EncodedImage], use: Use, *, keep: bool = False
    ) -> None:
        """Calls `use` with every part of the rows that passed the model together.

        keep  whether `use` needs the state, to go on from

        Where memory is short, a part is halved, and `use` may be called again for rows that it has had.
        Raises ModelMemoryError if memory does not suffice for one row.
        """
        blocks = self.backbone.blocks(rows, images)
        lengths = {place: len(block.ids) for place, block in enumerate(blocks)}

        def finish(part: list[int], source: State | None, owner: dict[int, int], tails: list[Block]) -> None:
            """`use` after the `tails` of rows `part`, each of which follows row `owner` of `source`."""
            # A layer that is computed again would not know which tokens are real.
            again = not at_positions(self.adapters)
            state = select(source, [owner[place] for place in part] if owner else [])
            hidden, state = self.backbone.extend(state, tails, images, keep=keep, recompute=again)
            use(Read(part, hidden, [block.positions[:, -1:] + 1 for block in tails], state))

        def finish_whole(part: list[int]) -> None:
            finish(part, None, {}, [blocks[place] for place in part])

        if not self._shares(blocks):
            self._in_parts(lengths, finish_whole)
            return
        start = self._common_beginning(rows)
        root = self._state_of(blocks[0], start) if start else None
        alone, groups = self._groups(rows, start)

        def finish_alone(part: list[int]) -> None:
            finish(part, root, dict.fromkeys(part, 0), [blocks[place].cut(start) for place in part])

        def finish_groups(many: list[int]) -> None:
            heads = [blocks[first].cut(start, groups[first].end) for first in many]
            _, state = self.backbone.extend(select(root, [0] * len(many)), heads, images, keep=True)
            owner = {place: at for at, first in enumerate(many) for place in groups[first].places}
            ends = [groups[first].end for first in many]

            def finish_tails(part: list[int]) -> None:
                tails = [blocks[place].cut(ends[owner[place]])._replace(images=()) for place in part]
                finish(part, state, owner, tails)

            self._in_parts({place: lengths[place] for place in owner}, finish_tails)

        self._in_parts({place: lengths[place] for place in alone}, finish_alone)
        self._in_parts({first: group.end for first, group in groups.items()}, finish_groups)

    def forget(self) -> None:
        """Drop the kept beginning, as after a change of the weights."""
        self._beginning = None

    def tokens_at_once(self) -> int:
        """The number of tokens, with padding, that pass the model together, by the memory that is free."""
        weight = self.backbone.model.get_input_embeddings().weight
        budget = CPU_BYTES
        if weight.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(weight.device)
            unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
            budget = (free + unused) // 2
        return max(1, budget // _token_bytes(self.backbone.text_config, weight.element_size()))

    def _shares(self, blocks: Sequence[Block]) -> bool:
        """Not with gradients, which need every row's own graph, nor beyond a sliding window, where padding
        would change distances.
        """
        if not self.share or self.at_once or torch.is_grad_enabled() or len(blocks) < 2:
            return False
        if at_positions(self.adapters, last=True):
            return False
        config = self.backbone.text_config
        if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
            return True
        return 2 * max(len(block.ids) for block in blocks) <= config.sliding_window

    def _common_beginning(self, rows: Sequence[Row]) -> int:
        """The number of tokens before any image that all rows begin with; 0 if they are few."""
        first, images = rows[0].ids, self.backbone.image_tokens
        until = next((at for at, token in enumerate(first) if token in images), len(first) - 1)
        count = min([until, *(min(common(first, row.ids), len(row.ids) - 1) for row in rows)])
        return count if count >= LEAST_SHARED else 0

    def _state_of(self, block: Block, end: int) -> State:
        """The state of the common beginning; kept until another is asked for, or weights are loaded.

        Not kept where weights may change otherwise: with adapters, and while any of them has gradients.
        """
        model = self.backbone.model
        if len(self.adapters) or any(value.requires_grad for value in model.parameters()):
            return self._computed(block, end)
        loads = getattr(model, LOADS, 0)
        key = (*block.ids[:end], str(self.backbone.device), str(model.dtype), loads)
        kept = self._beginning  # read once: another thread may replace it meanwhile
        if kept is None or kept[0] != key:
            self._beginning = kept = (key, self._computed(block, end))
        return kept[1]

    def _computed(self, block: Block, end: int) -> State:
        try:
            _, state = self.backbone.extend(None, [block.cut(0, end)._replace(images=())], (), keep=True)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._memory_error(end) from error
        assert state is not None
        return state

    def _groups(self, rows: Sequence[Row], start: int) -> tuple[list[int], dict[int, "_Group"]]:
        """(places of rows that share no image's tokens, {a group's first place: group})."""
        by_images: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            by_images.setdefault(row.images, []).append(place)
        alone: list[int] = []
        groups = {}
        for places in by_images.values():
            first = rows[places[0]].ids
            # Every row keeps a token of its own, whose hidden state is read.
            end = min(min(common(first, rows[place].ids), len(rows[place].ids) - 1) for place in places)
            if len(places) > 1 and end > start and not self.backbone.image_tokens & set(first[end:]):
                groups[places[0]] = _Group(places, end)
            else:
                alone += places
        return alone, groups

    def _in_parts(self, lengths: dict[int, int], work: Callable[[list[int]], None]) -> None:
        """`work` on the places, in parts whose tokens should fit into memory; in halves if they do not."""
        for part in self._parts(lengths):
            self._in_halves(part, lengths, work)

    def _in_halves(self, part: list[int], lengths: dict[int, int], work: Callable[[list[int]], None]) -> None:
        try:
            return work(part)
        except (RuntimeError, ModelMemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(part) == 1 or self.at_once:
                if isinstance(error, ModelMemoryError):
                    raise
                raise self._memory_error(lengths[part[0]]) from error
        # Outside the except block, which keeps the tensors of the failed attempt.
        half = len(part) // 2
        for smaller in (part[:half], part[half:]):
            self._in_halves(smaller, lengths, work)

    def _parts(self, lengths: dict[int, int]) -> Iterable[list[int]]:
        """The places, rows of similar length together, in parts whose tokens fit into memory."""
        most = self.tokens_at_once()
        part: list[int] = []
        for place in sorted(lengths, key=lengths.__getitem__):  # so the last of a part is its width
            if not self.at_once and part and (len(part) + 1) * lengths[place] > most:
                yield part
                part = []
            part.append(place)
        if part:
            yield part

    def _memory_error(self, tokens: int) -> ModelMemoryError:
        name = self.backbone.model.config.name_or_path or type(self.backbone.model).__name__
        return ModelMemoryError(
            f"{name} has no memory for one text of {tokens} tokens on {self.backbone.device}: lower the "
            "second of pixels=, load with dtype='bfloat16' or quantize='4bit', or take a smaller model"
        )


class _Group(NamedTuple):
    """Rows of the same images, and the number of tokens that they have in common."""

    places: list[int]
    end: int


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that both begin with."""
    count = 0
    for one, other in zip(first, second):
        if one != other:
            break
        count += 1
    return count


def select(state: State | None, rows: Sequence[int]) -> State | None:
    """The state of these rows, a copy: going on from it leaves `state` as it is."""
    if state is None:
        return None
    indices = torch.tensor(list(rows), device=state.mask.device)
    cache: Any = copy.deepcopy(state.cache)
    cache.batch_select_indices(indices)
    return State(cache, state.mask[indices])


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory, on a GPU or on the CPU, also if it was named already."""
    named = (torch.OutOfMemoryError, ModelMemoryError)
    return isinstance(error, named) or "allocate memory" in str(error)


def _token_bytes(config: Any, size: int) -> int:
    """Bytes that a token takes: its key and value in every layer, and about ten activations in one layer."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    return size * (keys + 10 * (config.hidden_size + config.intermediate_size))
