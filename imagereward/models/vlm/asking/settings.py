"""JudgeConfig: all that a judge's score depends on beside the model's weights, as written beside them."""

from dataclasses import asdict, dataclass, field
from typing import Any

from imagereward.config import strict, whole_number
from imagereward.errors import InputError
from imagereward.models.vlm.asking.templates import TEMPLATES, Template, template_of

READOUTS = ("answer", "head", "verdict")
RESIZES = ("processor", "pillow")
AGGREGATES = ("arithmetic", "geometric")
POSITIONS = ("model", "sequential")
MOST_TOKENS = 2048  # of a prompt, by default


@dataclass(frozen=True)
class HeadConfig:
    """The reward head: linear layers with ReLU between them, in float32.

    hidden    widths between the hidden state and the output, such as (1024, 16); (): one linear layer
    outputs   1: the score; 2: mean and log standard deviation of the score, of which the mean is given
    dropout   share of values dropped after the first layer in training
    bias      whether the last layer has a bias
    """

    hidden: tuple[int, ...] = (1024, 16)
    outputs: int = 2
    dropout: float = 0.05
    bias: bool = True

    def __post_init__(self) -> None:
        for width in self.hidden:
            whole_number("head hidden", width, 1, 2**16)
        whole_number("head outputs", self.outputs, 1, 2)
        if not 0 <= self.dropout < 1:
            raise InputError(f"head dropout={self.dropout!r}: expected in [0, 1)")


@dataclass(frozen=True)
class JudgeConfig:
    """How a vision-language model is made a scorer.

    model        hub id or directory of the model; "": the directory that this config is in
    readout      "answer": the probability of an answer; "head": a reward head on a hidden state; "verdict": a
                 number in the text that the model writes
    template     what is asked
    head         the reward head; for read-out "head"
    pixels       (least, most) pixels of an image after resizing; for models that take them (Qwen's);
                 None: the model's own
    resize       "processor": images are resized as by the model's processor; "pillow": by Pillow before that,
                 to the size that Qwen2-VL's rule gives for `pixels`
    positions    "model": rotary positions as the model's own class gives them; "sequential": 0, 1, 2, ... for
                 image tokens too
    questions    file with yes/no questions for each prompt; "": the template is asked about the prompt itself
    aggregate    "arithmetic" or "geometric": the mean over a prompt's questions
    new_tokens   most tokens that are written; for read-out "verdict"
    samples      texts that are written for a pair; their scores are averaged
    temperature  of sampling; 0: the likeliest token each time
    seed         of sampling
    max_length   tokens of a prompt that are read
    apply_exif_rotation   turn images as their EXIF orientation says before they are judged
    """

    model: str = ""
    readout: str = "answer"
    template: Template = field(default_factory=lambda: TEMPLATES["shows"])
    head: HeadConfig | None = None
    pixels: tuple[int, int] | None = None
    resize: str = "processor"
    positions: str = "model"
    questions: str = ""
    aggregate: str = "arithmetic"
    new_tokens: int = 64
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    max_length: int = MOST_TOKENS
    apply_exif_rotation: bool = False

    def __post_init__(self) -> None:
        if self.readout not in READOUTS:
            raise InputError(f"readout={self.readout!r}: expected one of {', '.join(READOUTS)}")
        if self.positions not in POSITIONS:
            raise InputError(f"positions={self.positions!r}: expected one of {', '.join(POSITIONS)}")
        if self.resize not in RESIZES or (self.resize == "pillow" and self.pixels is None):
            raise InputError(f"resize={self.resize!r}: expected processor, or pillow with pixels=")
        if self.aggregate not in AGGREGATES:
            raise InputError(f"aggregate={self.aggregate!r}: expected one of {', '.join(AGGREGATES)}")
        if self.questions and self.readout != "answer":
            raise InputError(f"questions={self.questions!r} need readout='answer', not {self.readout!r}")
        whole_number("new_tokens", self.new_tokens, 1, 4096)
        whole_number("samples", self.samples, 1, 1000)
        whole_number("max_length", self.max_length, 2)
        if not isinstance(self.apply_exif_rotation, bool):
            raise InputError(f"apply_exif_rotation={self.apply_exif_rotation!r}: expected true or false")
        if not isinstance(self.temperature, (int, float)) or not 0 <= self.temperature <= 10:
            raise InputError(f"temperature={self.temperature!r}: expected in [0, 10]")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"samples={self.samples} at temperature=0 are all the same; give a temperature")
        if self.pixels is not None:
            if not isinstance(self.pixels, list | tuple) or len(self.pixels) != 2:
                raise InputError(f"pixels={self.pixels!r}: expected (least, most) pixels of an image")
            least, most = self.pixels
            if not 0 < whole_number("pixels", least, 1) <= whole_number("pixels", most, 1):
                raise InputError(f"pixels={self.pixels!r}: expected (least, most)")
        needs = {
            "answer": (self.template.answers, "answers"),
            "verdict": (self.template.grammar, "a grammar"),
            "head": (self.head, "a head"),
        }
        what, name = needs[self.readout]
        if not what:
            raise InputError(
                f"template {self.template.name!r} has no {name.removeprefix('a ')}; readout={self.readout!r} "
                f"needs {name}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in `judge.json`."""
        return {**asdict(self), "template": self.template.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "JudgeConfig":
        """The config that `to_dict` wrote, or that a user wrote; a template may be given by name."""
        values = dict(values)
        if isinstance(template := values.get("template"), dict):
            values["template"] = Template.from_dict(template)
        elif isinstance(template, str):
            values["template"] = template_of(template)
        if isinstance(head := values.get("head"), dict):
            values["head"] = strict(HeadConfig, {**head, "hidden": tuple(head.get("hidden", (1024, 16)))})
        if isinstance(pixels := values.get("pixels"), list):
            values["pixels"] = tuple(pixels)
        return strict(cls, values)
