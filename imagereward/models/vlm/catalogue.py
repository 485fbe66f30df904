"""JUDGES: the facts about vision-language scorers that `load` knows by name."""

from dataclasses import dataclass

from imagereward.models.vlm.asking.settings import HeadConfig, JudgeConfig
from imagereward.models.vlm.asking.templates import TEMPLATES

HPSV3 = "HPSv3"
# What the tests of this repository show, on tiny models of the same classes with random weights.
COMPUTATION = "the computation, on tiny random models of the same class"


@dataclass(frozen=True)
class Judge:
    """A vision-language scorer with a name.

    model      hub id of the model of transformers
    readout    "answer", "head" or "verdict"
    template   name of the built-in template; "" for HPSv3, whose text is read from its package
    scores     meaning and range of the scores, in words
    licence    licence of the weights, as their pages say; "see its page" where that is not recorded here
    paper      arXiv number
    billions   parameters in billions, by the model's name
    verified   what has been verified in this repository
    unverified what has not
    """

    model: str
    readout: str
    template: str
    scores: str
    licence: str
    paper: str
    billions: float
    verified: str = COMPUTATION
    unverified: str = "scores of the released weights, and agreement with people"

    @property
    def gigabytes(self) -> float:
        """Memory of the weights in bfloat16, 2 bytes a parameter; activations and keys come on top."""
        return 2 * self.billions

    def config(self) -> JudgeConfig:
        """The judge's settings; of HPSv3, without its template's words."""
        if self.readout == "head":
            return JudgeConfig(
                self.model,
                "head",
                TEMPLATES["preference"],
                HeadConfig(),
                pixels=(256 * 28 * 28, 256 * 28 * 28),
                resize="pillow",
                positions="sequential",
            )
        return JudgeConfig(self.model, self.readout, TEMPLATES[self.template])


def _vqa(model: str, licence: str) -> Judge:
    billions = float(model.removesuffix("-Instruct").rpartition("-")[2].removesuffix("B"))
    return Judge(
        f"Qwen/{model}",
        "answer",
        "shows",
        scores="probability of Yes to whether the picture shows the prompt, 0 to 1",
        licence=licence,
        paper="arXiv:2404.01291",
        billions=billions,
        unverified="scores of the released weights; the question's wording is this project's own",
    )


def _unified(size: str) -> Judge:
    return Judge(
        f"CodeGoat24/UnifiedReward-2.0-qwen3vl-{size}",
        "verdict",
        "unified-reward",
        scores="mean of written alignment, coherence and style, 0 to 1; NaN without a verdict",
        licence="see its page",
        paper="arXiv:2503.05236",
        billions=float(size.removesuffix("b")),
        unverified="scores of the released weights; the request's wording is this project's, not the one it "
        "was trained with: give that with template=",
    )


JUDGES: dict[str, Judge] = {
    HPSV3: Judge(
        "Qwen/Qwen2-VL-7B-Instruct",
        "head",
        "",
        scores="human preference, mean of a normal distribution; about 0 to 15 as published",
        licence="MIT (code; of the weights see MizzenAI/HPSv3)",
        paper="arXiv:2508.03789",
        billions=8,
        verified="the arithmetic of its package, on tiny random weights in its layout",
        unverified="scores of the released weights",
    ),
    **{
        f"VQAScore-{model.removesuffix('-Instruct')}": _vqa(model, licence)
        for model, licence in {
            "Qwen2.5-VL-3B-Instruct": "Qwen Research License",
            "Qwen2.5-VL-7B-Instruct": "Apache-2.0",
            "Qwen2.5-VL-32B-Instruct": "Apache-2.0",
            "Qwen2.5-VL-72B-Instruct": "Qwen License",
            "Qwen3-VL-2B-Instruct": "Apache-2.0",
            "Qwen3-VL-4B-Instruct": "Apache-2.0",
            "Qwen3-VL-8B-Instruct": "Apache-2.0",
            "Qwen3-VL-32B-Instruct": "Apache-2.0",
        }.items()
    },
    **{f"UnifiedReward-2.0-{size}": _unified(size) for size in ("2b", "4b", "8b", "32b")},
    "judge": Judge(
        "Qwen/Qwen3-VL-8B-Instruct",
        "verdict",
        "rubric",
        scores="alignment (weight 1/2), coherence and aesthetics (1/4 each), written 1 to 5; 0 to 1",
        licence="Apache-2.0",
        paper="this project",
        billions=8,
    ),
}


def available_judges() -> list[str]:
    """Names of the vision-language scorers that `load` takes."""
    return list(JUDGES)
