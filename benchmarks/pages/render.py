"""Write the tables of results/*.json into the pages that show them, between `<!-- name -->` marks.

python -m benchmarks.pages.render
"""

import json
import re
from collections.abc import Callable

from benchmarks.lib.paths import RESULTS, ROOT
from benchmarks.pages import judge_tables, memory_tables, personal_tables, scoring_tables, training_tables

PAGES = (
    ROOT / "docs/measured-scoring.md",
    ROOT / "docs/measured-training.md",
    ROOT / "docs/inpainting.md",
    ROOT / "docs/judges.md",
    ROOT / "docs/personal.md",
    ROOT / "docs/sharding.md",
    ROOT / "docs/shapes.md",
    ROOT / "imagereward/assets/ImageReward-tiny/README.md",
)

TABLES: dict[str, Callable[[dict], str]] = {
    "throughput-cpu": scoring_tables.throughput,
    "throughput-cuda": scoring_tables.throughput,
    "training-step-cpu": training_tables.training_step,
    "training-step-cuda": training_tables.training_step,
    "shapes-measure": scoring_tables.shapes_measure,
    "tiny": training_tables.tiny,
    "real-size-step-cpu": training_tables.real_size_step,
    "real-size-step-cuda": training_tables.real_size_step,
    "fits": memory_tables.fits,
    "fits-sharded": memory_tables.fits_sharded,
    "inpainting": training_tables.inpainting,
    "personal": personal_tables.personal,
    "personal-reached": personal_tables.personal_reached,
    "personal-shuffled": personal_tables.personal_shuffled,
    "adapter-step-cpu": personal_tables.adapter_step,
    "adapter-step-cuda": personal_tables.adapter_step,
    "tiny-drawings": training_tables.tiny_drawings,
    "finetune": training_tables.finetune,
    "finetune-flow": training_tables.finetune_flow,
    "self-imitation": training_tables.self_imitation,
    "bulk-cpu": scoring_tables.bulk,
    "bulk-cuda": scoring_tables.bulk,
    "serve-cpu": scoring_tables.serve,
    "serve-cuda": scoring_tables.serve,
    "refused-requests": scoring_tables.refused,
    "judges-cpu": judge_tables.judges,
    "judges-cuda": judge_tables.judges,
    "judge-costs": judge_tables.judge_costs,
    "tiny-vlm": judge_tables.tiny_vlm,
    "finetune-judge": judge_tables.finetune_judge,
}
# Tables whose results file has another name.
SOURCES = {"personal-reached": "personal"}


def rendered(text: str) -> str:
    """`text` with the blocks `<!-- name -->` of every name in `TABLES` filled in from its results file."""

    def fill(match: re.Match) -> str:
        source = SOURCES.get(match[1], match[1])
        result = json.loads((RESULTS / f"{source}.json").read_text())
        return f"<!-- {match[1]} -->\n{TABLES[match[1]](result)}\n<!-- /{match[1]} -->"

    return re.sub(rf"<!-- ({'|'.join(TABLES)}) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
