"""Write the tables of results/*.json into README.md, between their markers.

python benchmarks/render.py
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
README = HERE.parent / "README.md"


def tables(result: dict) -> str:
    """The throughput file as Markdown."""
    environment = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    speed = [
        f"| {row['what']} | {row['per_s']:.2f} | {row['times_loop']:.2f} x |" for row in result["scoring"]
    ]
    alone = {row["dtype"]: row for row in result["model_alone"]}
    error = [
        f"| {row['dtype']} | {row['max_error']:.4f} | {row['mean_error']:.4f} "
        f"| {alone[row['dtype']]['images_per_s']:.2f} | {100 * alone[row['dtype']]['share']:.0f} % "
        f"| {1000 * alone[row['dtype']]['product_tflops']:.0f} |"
        for row in result["errors"]
    ]
    load = result["loading"]
    return "\n".join(
        [
            f"{environment['device']}, {environment['threads']} threads; {versions}; "
            f"commit {environment['commit']}, {environment['date']}; batches of {result['batch_size']}.",
            "",
            "| ImageReward, full size | images/s (or pairs/s) | against the loop |",
            "|---|---|---|",
            *speed,
            "",
            "| dtype | largest error of a score | mean error | images/s, model alone "
            "| share of this machine's matrix-product rate | that rate, GFLOP/s |",
            "|---|---|---|---|---|---|",
            *error,
            "",
            f"Loading takes {load['load_s']:.2f} s, {100 * load['load_share']:.0f} % of building "
            f"a random model and filling it ({load['build_and_fill_s']:.1f} s). Loading and scoring raise "
            f"resident memory by {load['peak_over_imports_mb']:.0f} MB, {load['peak_share']:.2f} x "
            f"the checkpoint ({load['checkpoint_mb']:.0f} MB).",
        ]
    )


def rendered(text: str) -> str:
    """`text` with the block between `<!-- throughput-X -->` and `<!-- /throughput-X -->` filled in."""

    def fill(match: re.Match) -> str:
        result = json.loads((HERE / "results" / f"{match[1]}.json").read_text())
        return f"<!-- {match[1]} -->\n{tables(result)}\n<!-- /{match[1]} -->"

    return re.sub(r"<!-- (throughput-\w+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(rendered(README.read_text()))
