"""Puts deliberate faults into lines that decide numbers, and runs the tests that should notice each of them.

    python tests/mutations.py            every fault, a line each; exit code 1 if a test missed one
    python tests/mutations.py clip LoRA  those whose names contain one of these words

Each fault is put into a temporary copy of the repository, where its tests are run; pytest does not collect
this file. The text that a fault replaces must occur in its file exactly once: otherwise the fault counts as
missed without a try. `test_mutations.py` checks all texts, so that a changed line shows at once.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TUNING = "imagereward/tuning/"
NUMBERS = "tests/test_learning_numbers.py"
TESTS_FAILED = 1  # pytest's exit code; others but 0 mean that no test was run


class Fault(NamedTuple):
    """`old` becomes `new` in `file`; `tests` are arguments of pytest that should then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


VLM = "imagereward/models/vlm/"

FAULTS = [
    Fault(
        "time in two modules at once counts twice",
        "benchmarks/lib/steps.py",
        "length += max(0.0, end - max(begin, reached))",
        "length += end - begin",
        "tests/test_real_size_step.py -k overlap",
    ),
    Fault(
        "positions in a judge's rows begin anew where a shared beginning ends",
        "imagereward/adapters/reft.py",
        "where = where[:, -h.shape[1] :]  # the tokens before passed earlier",
        "where = where[:, : h.shape[1]]",
        "tests/test_judge_adapters.py -k sharing_and_matrices",
    ),
    Fault(
        "a kept beginning is taken for an adapter's",
        VLM + "shared_prefixes.py",
        "if len(self.adapters) or any(",
        "if any(",
        "tests/test_judge_adapters.py -k kept_beginning",
    ),
    Fault(
        "the best image of several rewards is that of their plain sum",
        TUNING + "objectives/sampled.py",
        'by = self.deviation if self.advantages_of == "each" else None',
        "by = None",
        "tests/test_samples.py -k best_of_several",
    ),
    Fault(
        "a process's loss counts whatever share of a batch's pairs it has",
        TUNING + "personal/learner.py",
        "ranks * self._weight(targets, rows) / max(1, whole)",
        "1.0",
        "tests/test_personal_processes.py",
    ),
    Fault(
        "choices that share an image are held out apart",
        TUNING + "personal/folds.py",
        "above[root(row)] = root(first.setdefault(key, row))",
        "first.setdefault(key, row)",
        "tests/test_personal_evidence.py -k share_an_image",
    ),
    Fault(
        "a tie of the scores is wrong",
        TUNING + "personal/summary.py",
        "(scores[better] == scores[worse]) / 2",
        "0",
        "tests/test_personal_evidence.py -k breaking_ties",
    ),
    Fault(
        "refits learn from all choices, not from drawn ones",
        TUNING + "personal/bootstrap.py",
        "drawn = np.random.default_rng(list(seed)).choice(names, len(names))",
        "drawn = names",
        "tests/test_choosing.py -k refits_learn",
    ),
    Fault(
        "a judge reads the first hidden state of a text, not its last",
        VLM + "backbone.py",
        "out.last_hidden_state[:, -1]",
        "out.last_hidden_state[:, 0]",
        "tests/test_judges.py -k probabilities",
    ),
    Fault(
        "tokens after a shared beginning attend to its padding",
        VLM + "backbone.py",
        "full = mask if state is None else torch.cat([state.mask, mask], 1)",
        "full = mask if state is None else torch.cat([torch.ones_like(state.mask), mask], 1)",
        "tests/test_judges.py -k probabilities",
    ),
    Fault(
        "HPSv3 has Qwen2-VL's own positions",
        VLM + "catalogue.py",
        'positions="sequential",',
        'positions="model",',
        "tests/test_judge_heads.py -k computes",
    ),
    Fault(
        "a comparison asks one order alone",
        VLM + "comparing.py",
        "float((ahead - behind) / 2)",
        "float(ahead)",
        "tests/test_judge_surfaces.py -k antisymmetric",
    ),
    Fault(
        "an unreadable verdict counts as 0",
        VLM + "asking/verdicts.py",
        "            return math.nan\n        total",
        "            return 0.0\n        total",
        "tests/test_judge_rules.py -k verdict",
    ),
    Fault(
        "variances of uncertain scores are not added",
        TUNING + "judges/objective.py",
        "variances = (2 * first[:, 1]).exp() + (2 * second[:, 1]).exp()",
        "variances = (2 * first[:, 1]).exp()",
        "tests/test_judge_training.py -k outputs",
    ),
    Fault(
        "prompts with few images weigh as much in a judge's update as those with many",
        TUNING + "judges/objective.py",
        "RankedBatch(each, count / sum(counts))",
        "RankedBatch(each, 1 / len(counts))",
        "tests/test_judge_training.py -k mean_over_its_pairs",
    ),
    Fault(
        "a trained judge has its last weights, not its best",
        TUNING + "judges/train.py",
        "if not before or loss < min(before):",
        "if True:",
        "tests/test_judge_resume.py -k best_validation",
    ),
    Fault(
        "gradients are not clipped",
        TUNING + "trainer/trainer.py",
        "clip_grad_norm_(learns, config.max_gradient_norm)",
        "clip_grad_norm_(learns, 1e9)",
        f"{NUMBERS} -k clip",
    ),
    Fault(
        "AdamW has no weight decay",
        TUNING + "trainer/optimizer.py",
        "weight_decay=config.weight_decay",
        "weight_decay=0.0",
        f"{NUMBERS} -k 'decay or adamw'",
    ),
    Fault(
        "AdamW's second moment has its default decay",
        TUNING + "trainer/optimizer.py",
        "betas=(0.9, config.beta2)",
        "betas=(0.9, 0.999)",
        f"{NUMBERS} -k adamw",
    ),
    Fault(
        "LoRA's alpha is its rank",
        TUNING + "policy/trainable.py",
        "lora_alpha=lora.alpha",
        "lora_alpha=lora.rank",
        f"{NUMBERS} -k lora",
    ),
    Fault(
        "the cosine ends at half the rate",
        TUNING + "trainer/optimizer.py",
        "math.cos(math.pi * done)",
        "math.cos(math.pi * done / 2)",
        f"{NUMBERS} -k rates",
    ),
    Fault(
        "SFT drops the prompts that it should keep",
        TUNING + "objectives/sft.py",
        "generator=source)) < self.config.prompt_dropout",
        "generator=source)) >= self.config.prompt_dropout",
        "tests/test_sft.py -k dropped",
    ),
    Fault(
        "ReFL's distance has no weight",
        TUNING + "objectives/refl.py",
        "config.reference_weight * away.mean()",
        "1.0 * away.mean()",
        f"{NUMBERS} -k distance",
    ),
    Fault(
        "ReFL's distance is left out",
        TUNING + "objectives/refl.py",
        " + config.reference_weight * away.mean()",
        "",
        f"{NUMBERS} -k distance",
    ),
    Fault(
        "the distance is summed over elements",
        TUNING + "objectives/refl.py",
        "(prediction - base).square().flatten(1).mean(1)",
        "(prediction - base).square().flatten(1).sum(1)",
        f"{NUMBERS} -k distance",
    ),
    Fault(
        "the distance is summed over steps",
        TUNING + "objectives/refl.py",
        "away = away + more / count",
        "away = away + more",
        f"{NUMBERS} -k distance",
    ),
    Fault(
        "training times of flow models are shifted by mu",
        TUNING + "sampling/flow.py",
        'shift = math.exp(mu) if config.time_shift_type == "exponential" else mu',
        "shift = mu",
        "tests/test_flow.py -k training_times",
    ),
    Fault(
        "ReFL scores the next sample",
        TUNING + "objectives/refl.py",
        "(step.x0 if span.predicted and i == span.end - 1 else step.next)",
        "step.next",
        f"{NUMBERS} -k scored",
    ),
    Fault(
        "a report takes rows for independent",
        "imagereward/report/figures.py",
        "several = len(scores.prompts) > 1",
        "several = False",
        "tests/test_report.py -k 'intervals or equal'",
    ),
    Fault(
        "an evaluation with its own steps has no guidance",
        TUNING + "finetune.py",
        "chosen.steps or config.steps), policy.guidance)",
        "chosen.steps or config.steps), 1.0 if chosen.steps else policy.guidance)",
        "tests/test_guidance.py -k evaluation",
    ),
    Fault(
        "guidance below 1 mixes in the empty prompt",
        TUNING + "families/guidance.py",
        "if scale <= 1.0:",
        "if scale == 1.0:",
        "tests/test_guidance.py -k 'one_and_below or compare'",
    ),
    Fault(
        "advantages are divided by the variance of a group",
        TUNING + "rollouts/advantages.py",
        "deviation = mean_in_groups(away**2, correction).sqrt()",
        "deviation = mean_in_groups(away**2, correction)",
        "tests/test_credit.py",
    ),
    Fault(
        "the sum of the rewards' advantages is divided by a group's deviation",
        TUNING + "rollouts/advantages.py",
        'by._replace(scope="batch")',
        "by",
        "tests/test_credit.py -k each",
    ),
    Fault(
        "a watched reward that failed spoils the sum",
        TUNING + "rollouts/advantages.py",
        "if isinstance(weights[name], float | int) and not weights[name]:",
        "if weights[name] is None:",
        "tests/test_credit.py -k weight_0",
    ),
    Fault(
        "the samples that the trained reward places lower are disputed",
        TUNING + "rollouts/advantages.py",
        "(_places(trained_N) - places.nanmean(0))",
        "(places.nanmean(0) - _places(trained_N))",
        "tests/test_penalties.py -k 'disputed or dispute'",
    ),
    Fault(
        "all samples have the penalty",
        TUNING + "objectives/penalty.py",
        "torch.where(penalised_B, away, 0.0)",
        "away",
        "tests/test_penalties.py -k only_disputed",
    ),
    Fault(
        "the reference is replaced an update late",
        TUNING + "policy/refresh.py",
        "updates >= self.every",
        "updates > self.every",
        "tests/test_penalties.py -k due",
    ),
    Fault(
        "Flow-DPPO's mask drops whatever is far away",
        TUNING + "objectives/clipping.py",
        "(kl_B >= bound) & ((ratio_B - 1) * advantages_B > 0)",
        "kl_B >= bound",
        "tests/test_penalties.py -k masked",
    ),
    Fault(
        "an unknown verdict is a win of the second image",
        TUNING + "rewards/groups.py",
        "torch.where(verdicts_P.isnan(), 0.5, verdicts_P)",
        "torch.where(verdicts_P.isnan(), 0.0, verdicts_P)",
        "tests/test_group_rewards.py -k by_hand",
    ),
    Fault(
        "both images of a pair win",
        TUNING + "rewards/groups.py",
        "index_add(0, second_P, 1 - points)",
        "index_add(0, second_P, points)",
        "tests/test_group_rewards.py -k by_hand",
    ),
    Fault(
        "of a group only the images that failed are judged again",
        TUNING + "rewards/scoring.py",
        "if not whole:",
        "if missing:",
        "tests/test_group_rewards.py -k asked_again",
    ),
    Fault(
        "the tuned network's steps are rounded down",
        TUNING + "policy/policy.py",
        "int(self.hybrid.share * steps + 0.5)",
        "int(self.hybrid.share * steps)",
        "tests/test_hybrid.py -k first_share",
    ),
    Fault(
        "rings are of 3 x 3 squares",
        "imagereward/rewards/region.py",
        "RING = 5",
        "RING = 3",
        "tests/test_inpainting_rewards.py -k scipy",
    ),
    Fault(
        "the border of an image is an edge",
        "imagereward/rewards/region.py",
        'mode="replicate"',
        'mode="constant"',
        "tests/test_inpainting_rewards.py -k scipy",
    ),
    Fault(
        "a grown box leaves the image",
        "imagereward/rewards/region.py",
        "start = min(max(start - (length - (end - start)) // 2, 0), side - length)",
        "start = max(start - (length - (end - start)) // 2, 0)",
        "tests/test_inpainting_rewards.py -k 'grown or hand'",
    ),
    Fault(
        "what is kept is measured with the mask",
        "imagereward/rewards/region.py",
        "kept = (1 - masks_B_1_H_W)",
        "kept = (0 * masks_B_1_H_W + 1)",
        "tests/test_inpainting_rewards.py -k numpy",
    ),
    Fault(
        "boundary is weighted by the mask's share",
        "imagereward/rewards/inpainting.py",
        "weight = 1 - share if self.rest else share",
        "weight = share",
        "tests/test_inpainting_rewards.py -k formula",
    ),
    Fault(
        "of nested shares the inner one is lost",
        "imagereward/rewards/inpainting.py",
        "return weight if inner is None else weight * inner.to(weight)",
        "return weight",
        "tests/test_inpainting_rewards.py -k multiplied",
    ),
    Fault(
        "tiles are cut off at their borders",
        "imagereward/rewards/region.py",
        "reach = RING // 2",
        "reach = 0",
        "tests/test_inpainting_rewards.py -k tiles",
    ),
    Fault(
        "equal pixels have no PSNR in the summary",
        "imagereward/inpainting/results.py",
        'np.minimum(values, MOST_PSNR) if measure == "psnr" else values',
        "values",
        "tests/test_inpainting_evaluation.py -k psnr",
    ),
    Fault(
        "a missing score of a server is 0",
        "imagereward/remote/single.py",
        "return math.nan",
        "return 0.0",
        "tests/test_inpainting_server.py -k never",
    ),
    Fault(
        "cached latents have no mask",
        TUNING + "families/latent_cache.py",
        "columns[1].to(torch.uint8)",
        "(0 * columns[1]).to(torch.uint8)",
        "tests/test_inpainting_data.py -k equal_direct",
    ),
    Fault(
        "an inherited table of a recipe is replaced as a whole",
        TUNING + "inheritance.py",
        "if isinstance(before, dict) and isinstance(value, dict):",
        "if False:",
        "tests/test_inheritance.py -k merged",
    ),
    Fault(
        "a recipe's false in the place of an inherited table stays",
        TUNING + "inheritance.py",
        "value == REMOVED or (isinstance(before, dict) and value is False)",
        "value == REMOVED",
        "tests/test_inheritance.py -k removes",
    ),
    Fault(
        "inherited values come over a recipe's own",
        TUNING + "inheritance.py",
        "in reversed(chain)",
        "in chain",
        "tests/test_inheritance.py -k own_values",
    ),
    Fault(
        "explain names no inherited recipe",
        TUNING + "explain.py",
        'key.origin == "recipe" and key.name in inherited',
        "False",
        "tests/test_inheritance.py -k explain",
    ),
    Fault(
        "DPO's beta is not halved",
        TUNING + "objectives/dpo.py",
        "softplus(beta / 2 *",
        "softplus(beta *",
        "tests/test_samples.py -k log_2",
    ),
    Fault(
        "the samples of a DPO pair get noise of their own",
        TUNING + "rollouts/clean.py",
        "noise.to(policy.device).repeat(kinds, 1, 1, 1)",
        "torch.cat([noise, noise.flip(0)]).to(policy.device)[: kinds * len(noise)]",
        "tests/test_samples.py -k one_noise",
    ),
    Fault(
        "NFT weighs the bad side by its optimality",
        TUNING + "objectives/nft.py",
        "(1 - optimality_B) * error(worse)",
        "optimality_B * error(worse)",
        "tests/test_samples.py -k plain_loops",
    ),
    Fault(
        "NFT's scale has a gradient",
        TUNING + "objectives/nft.py",
        "(x0 - clean).detach().abs()",
        "(x0 - clean).abs()",
        "tests/test_samples.py -k 'plain_loops or no_path'",
    ),
    Fault(
        "AWM leaves out the power's factor",
        TUNING + "objectives/awm.py",
        "-noise_B / power *",
        "-noise_B *",
        "tests/test_samples.py -k awm_by_hand",
    ),
    Fault(
        "a training time may be drawn twice for a sample",
        TUNING + "rollouts/times.py",
        "int(torch.randperm(count, generator=source)[pass_index])",
        "int(torch.randint(count, (count,), generator=source)[pass_index])",
        "tests/test_samples.py -k grid",
    ),
    Fault(
        "a unit's share counts every pass whole",
        TUNING + "rollouts/minibatches.py",
        "each.weight / total / passes",
        "each.weight / total",
        "tests/test_samples.py -k shares",
    ),
]


def copy_of_the_repository(directory: Path) -> None:
    """Copy the files that git tracks, and the untracked ones that it does not ignore, to `directory`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)


def obstacle(fault: Fault, directory: Path) -> str:
    """The reason why the fault cannot be put into its file below `directory`; "" if it can."""
    path = directory / fault.file
    if not path.is_file():
        return f"{fault.file} does not exist"
    found = path.read_text(encoding="utf-8").count(fault.old)
    return "" if found == 1 else f"{fault.file} has {found} times {fault.old!r}; expected it once"


def outcome(fault: Fault, directory: Path) -> str:
    """`caught` or `SURVIVED`, or `NOT TRIED` and the reason."""
    if reason := obstacle(fault, directory):
        return f"NOT TRIED: {reason}"
    path = directory / fault.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(fault.old, fault.new), encoding="utf-8")
    try:
        command = f'"{sys.executable}" -m pytest -q -x -p no:cacheprovider {fault.tests}'
        environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
        ran = subprocess.run(
            command, shell=True, cwd=directory, env=environment, capture_output=True, text=True
        )
    finally:
        path.write_text(whole, encoding="utf-8")
    if ran.returncode == TESTS_FAILED:
        return "caught"
    if ran.returncode == 0:
        return "SURVIVED"
    return f"NOT TRIED: pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr)[-500:]}"


def main(words: list[str]) -> int:
    """Try the faults whose names contain one of the words, or all; 0 if every one was caught."""
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    missed = len(chosen)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        copy_of_the_repository(directory)
        for fault in chosen:
            found = outcome(fault, directory)
            missed -= found == "caught"
            print(f"{fault.name}: {found}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return 1 if missed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
