"""The model card of a trained judge: what it is, what it learned from, and how it is loaded."""

from imagereward.tuning.judges.config import JudgeTrainingConfig

CARD_FILE = "README.md"
READS = {
    "bradley-terry": "the log odds that an image is better than another are the difference of their scores",
    "ties": "the log odds that an image is better than another, with ties (Rao and Kupper)",
    "uncertain": "the mean of a normal distribution, of which the head also gives the deviation (HPSv3's "
    "loss)",
    "thurstone": "the mean of a normal distribution, of which the head also gives the deviation (Thurstone)",
}


def card(config: JudgeTrainingConfig, name: str, history: list[dict], prompts: tuple[int, int]) -> str:
    """The text of README.md.

    history  validations, from `history.json`
    prompts  numbers of prompts in training and validation
    """
    best = min(history, key=lambda entry: entry["valid_loss"])
    first = f"{history[0]['accuracy']:.1%}"
    low = f"LoRA of rank {config.lora.rank}, merged" if config.lora else "no LoRA"
    return f"""# {name}

A reward model for text-to-image: a head on the vision-language model `{config.model}`, trained with
imagereward. Its score: {READS[config.loss]}.

- Learned from: {prompts[0]} prompts with ranked images of `{config.data}`; validated on {prompts[1]}.
- Learned: the head, {low}; beside that train="{config.train}".
- Length: {config.updates} updates of {config.batch_size} prompts.
- Best validation, after update {best["update"]}: loss {best["valid_loss"]:.4f};
  {best["accuracy"]:.1%} of pairs without a tie in the order of the ranking, before training {first}.
- The licence of the weights is that of the base model, and of the data.

```python
import imagereward as RM

judge = RM.load({config.output!r})
judge.score("a red bicycle", ["a.png", "b.png"])
```
"""
