"""What the server answers, as models: they make the JSON, and the documentation."""

from pydantic import BaseModel, Field


class Answer(BaseModel):
    """What every answer says: who scored, and how much of each prompt was read."""

    model: str
    tokens: list[int] = Field(description="Of each prompt, before truncation; 0: prompts are not read.")
    truncated: list[bool] = Field(description="Whether only the beginning of each prompt was read.")


class ScoreAnswer(Answer):
    """One score a pair, in the order of the pairs."""

    scores: list[float]


class RankAnswer(ScoreAnswer):
    """One score an image, in the order of the images."""

    ranks: list[int] = Field(description="Of each image, 1 the best; equal scores share a rank.")
    order: list[int] = Field(description="Indices of the images, best first.")


class MatrixAnswer(Answer):
    """scores[m][n]: prompt m with image n."""

    scores: list[list[float]]


class SimpleAnswer(BaseModel):
    """One score."""

    score: float


class ModelCard(BaseModel):
    """One scorer that is served."""

    name: str
    kind: str
    scores: str = Field(description="What a score means, if that is known.")
    max_length: int = Field(description="Tokens of a prompt that are read.")
    dtype: str
    device: str


class ModelsAnswer(BaseModel):
    """The scorers, the default first, and the bounds of one request."""

    models: list[ModelCard]
    limits: dict[str, int]


class HealthAnswer(BaseModel):
    """Whether scores can be had."""

    status: str


class Fault(BaseModel):
    """Why a request was turned away."""

    detail: str
    images: dict[str, str] = Field({}, description="Of an image's index, what is wrong with it.")
