"""Markdown tables of the results of benchmarks/scoring and benchmarks/shapes."""

from benchmarks.lib import record


def throughput(result: dict) -> str:
    """A table of results/throughput-*.json."""
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
            f"{record.machine(result)}; batches of {result['batch_size']}.",
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


def bulk(result: dict) -> str:
    """A list of results/bulk-*.json: a line for each measure."""
    full, over, memory = result["throughput"], result["overhead"], result["memory"]
    kills, corrupt, cache = result["kills"], result["corrupt"], result["cache"]
    sizes = " and ".join(f"{rows}" for rows in memory["rows"])
    peaks = " and ".join(f"{peak:.0f} MB" for peak in memory["peak_mb"])
    lines = {
        f"full size, {full['rows']} rows, batches of {full['batch_size']}": f"{full['bulk_per_s']:.2f} "
        f"rows/s; bare model on decoded batches {full['bare_per_s']:.2f}: {100 * full['share']:.0f} % of it, "
        f"{100 * full['share_with_decode']:.0f} % of model and decoding ({full['decode_ms']:.1f} ms) in turn",
        f"overhead, {over['rows']} rows": f"{over['overhead_ms']:.2f} ms of CPU a row beyond decoding and "
        f"model, which take {over['decode_and_model_ms']:.2f} ms",
        f"peak memory at {sizes} rows": f"{peaks}, {memory['ratio']:.2f} x",
        f"kill -9 at {kills['kills']} random moments": "identical file" if kills["equal"] else "ANOTHER file",
        f"{100 * corrupt['damaged']:.0f} % damaged images in {corrupt['rows']} rows": f"{corrupt['failed']} "
        f"rows with an error; {corrupt['wrong']} rows with one missing or too much",
        f"cache, full size, {cache['rows']} rows": f"first pass {cache['first_s']:.0f} s, second with other "
        f"prompts {cache['second_s']:.0f} s, {cache['times']:.1f} x; {cache['mb_an_image']:.2f} MB an image",
    }
    rows = [f"| {what} | {figure} |" for what, figure in lines.items()]
    return "\n".join([f"{record.machine(result)}.", "", "| | |", "|---|---|", *rows])


def serve(result: dict) -> str:
    """A list of results/serve-*.json: a line for each measure, and a table of latency by clients."""
    speed, cpu, answers = result["throughput"], result["cpu"], result["answers"]
    memory = answers["memory_mib"]
    lines = {
        f"full size, {speed['clients']} clients, one image in each request": (
            f"{speed['served_per_s']:.2f} images/s; offline {speed['offline_per_s']:.2f}: "
            f"{100 * speed['share']:.0f} % of it"
        ),
        f"CPU time of a request, {cpu['images_a_batch']:.0f} images in a batch": (
            f"{cpu['server_ms']:.1f} ms; decoding and model alone {cpu['decode_and_model_ms']:.1f} ms: "
            f"{cpu['overhead_ms']:+.2f} ms"
        ),
        f"{answers['requests']} answers": f"{answers['lost']} lost, {answers['crossed']} not their own",
        "the server's memory on the way": f"{memory[1]:.0f} MiB after a tenth, {memory[-1]:.0f} at the end",
    }
    latency = [
        f"| {row['clients']} | {row['p50_ms']:.0f} | {row['p99_ms']:.0f} | {100 * row['refused']:.1f} % |"
        for row in result["latency"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {what} | {figure} |" for what, figure in lines.items()),
            "",
            "Latency of the answered requests, with `--queue 256`:",
            "",
            "| clients | median, ms | 99th percentile, ms | refused (429) |",
            "|---|---|---|---|",
            *latency,
        ]
    )


def shapes_measure(result: dict) -> str:
    """Tables of results/shapes-measure.json: accuracy by attribute and condition, and of cleanliness."""
    rows = result["attributes"]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    agreement = {(row["attribute"], row["condition"]): row["agreement"] for row in rows}
    damages = [row for row in result["cleanliness"] if row["level"]]
    levels = sorted({row["level"] for row in damages})
    ordered = {(row["damage"], row["level"]): row["ordered"] for row in damages}
    return "\n".join(
        [
            f"{record.machine(result)}; {result['images']} images for each condition and kind of mistake, "
            f"{result['milliseconds']['64']:.0f} ms an image of 64 pixels.",
            "",
            "How often an attribute is judged rightly, over images where it is right and where it is wrong:",
            "",
            f"| attribute | {' | '.join(conditions)} |",
            f"|---{'|---' * len(conditions)}|",
            *(
                f"| {name} | {' | '.join(f'{100 * agreement[name, where]:.1f} %' for where in conditions)} |"
                for name in dict.fromkeys(row["attribute"] for row in rows)
            ),
            "",
            "How often the clean drawing of a scene measures cleaner than the damaged one:",
            "",
            f"| damage | {' | '.join(f'level {level}' for level in levels)} |",
            f"|---{'|---' * len(levels)}|",
            *(
                f"| {name} | {' | '.join(f'{100 * ordered[name, level]:.1f} %' for level in levels)} |"
                for name in dict.fromkeys(row["damage"] for row in damages)
            ),
        ]
    )


def refused(result: dict) -> str:
    """Tables of results/refused-requests.json: memory by kind of request, and answers beside strangers."""
    memory = result["memory"]
    kinds = [
        f"| {row['kind']} | {row['body_mb']:.0f} | {row['status']} | {row['ms']:.0f} "
        f"| {row['before_mib']:.0f} | {row['peak_mib']:.0f} | {row['after_mib']:.0f} |"
        for row in memory["kinds"]
    ]
    strangers = [
        f"| {row['connections']} half-sent `POST {row['path']}` | {row['answered']} of {row['answered']} "
        f"| {row['alone_ms']:.0f} | {row['ms']:.0f} | {row['memory_mib']:+.0f} |"
        for row in result["strangers"]
    ]
    return "\n".join(
        [
            f"{record.machine(result)}.",
            "",
            f"{memory['kinds'][0]['requests']} requests of each kind, four at a time; the server held "
            f"{memory['start_mib']:.0f} MiB before all of them and {memory['end_mib']:.0f} MiB after.",
            "",
            "| refused | MB each | answer | ms each | MiB before | at most | after |",
            "|---|---|---|---|---|---|---|",
            *kinds,
            "",
            "| connections without the token | answered with it | ms alone | ms beside them | MiB |",
            "|---|---|---|---|---|",
            *strangers,
        ]
    )
