"""The card of a personal adapter: what it was made from, what it is worth, and how to use it."""

from imagereward.adapters.base import Adapter
from imagereward.tuning.personal.summary import Summary
from imagereward.version import __version__

CARD_FILE = "README.md"


def card(adapter: Adapter, summary: Summary, loading: str) -> str:
    """The card as Markdown.

    loading  a line of Python that loads the scorer with the adapter
    """
    config = adapter.described()
    about = (
        "Choices were held out one by one, and their images recur in choices that were learned from: the "
        "figures are\nabout choices among these images, and nothing about new ones."
        if summary.recurring
        else f"Intervals are 95 %, over {summary.unit}, of choices that were held out together with all that "
        "share an image with\nthem. They say how the adapter does on choices like these, by the same person, "
        "and nothing about others."
    )
    return f"""---
library_name: imagereward
tags: [reward-model, adapter, {config.kind}]
---

# {config.name}

An adapter for the reward model {config.base}, {config.kind} of rank {config.rank}, learned from
{summary.choices} choices by imagereward {__version__}: {summary.parameters:,} numbers.

```python
import imagereward as RM

model = {loading}
```

## What it is worth

```text
{summary}
```

{about}
"""
