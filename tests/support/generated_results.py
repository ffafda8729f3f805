"""The tables of results in the documents, from the JSON in `model_cards`."""

import flatness
from places import CARDS

from hf_sam.comparing import overview
from hf_sam.comparing.comparison import BASELINES, Comparison, comparison_table
from hf_sam.reporting.interval import Interval

# The comparisons of docs/results.md, in its order, and what its tables call them.
FRONTIER, CLEAN = "cub200_first50-frontier", "cub200_first50-clean"
TITLES = {
    "oxford_flowers-mobilenet": "Oxford Flowers-102, MobileNetV2 0.35, SGD",
    "oxford_flowers-lite0": "Oxford Flowers-102, EfficientNet-Lite0, SGD",
    "oxford_flowers-lite0-long": "Oxford Flowers-102, EfficientNet-Lite0, SGD, a long run",
    "oxford_flowers-vit": "Oxford Flowers-102, ViT-S/14, AdamW",
    "oxford_flowers-frontier": "Oxford Flowers-102, MobileNetV2 0.35, SGD, settings by two seeds",
    "oxford_flowers-frontier40": "the same with 40 % of the labels wrong",
    "stanford_cars-lite0": "half of Stanford Cars, EfficientNet-Lite0, SGD",
    "cub200_first50-sgd": "50 birds of CUB-200, MobileNetV2 0.35, SGD",
    "cub200_first50-sgd3": "the same birds, settings chosen by three held-out tenths",
    "cub200_first50-adamw": "the same birds, AdamW",
    "cub200_first50-noise40": "the same birds, SGD, 40 % of the labels wrong",
    FRONTIER: "the same birds, SGD, 40 % wrong, settings chosen anew",
    CLEAN: "the same birds, SGD, right labels, four learning rates for base",
    "cub200_first50-noise80": "the same birds, SGD, 80 % of the labels wrong",
    "food101_first10-sgd": "10 dishes of Food-101, MobileNetV2 0.35, SGD",
    "cub200_first50-m": "m-sharpness",
    "cifar10-no_norm": "a network without BatchNorm",
}
# Those that the README shows, and what it calls them.
HEADLINES = {
    "oxford_flowers-mobilenet": "Flowers-102, MobileNetV2, SGD",
    "oxford_flowers-lite0": "Flowers-102, EfficientNet-Lite0, SGD",
    "cub200_first50-sgd": "Birds (CUB-200, 50 classes), MobileNetV2, SGD",
    FRONTIER: "Birds, SGD, 40 % of the training labels wrong",
}


def existing(names: dict[str, str]) -> list[str]:
    """Those of the comparisons that have been run."""
    return [name for name in names if (CARDS / f"{name}.json").exists()]


EVIDENCE = existing(TITLES)


def comparison_of(name: str) -> Comparison:
    return Comparison.read(CARDS / f"{name}.json")


def headline_table() -> str:
    """The few comparisons of the README: SAM against the base optimizer at equal cost."""
    rows = [
        "| top-1 error in % | base optimizer | base, twice the epochs | SAM "
        "| SAM minus base at twice the epochs | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name in existing(HEADLINES):
        comparison = comparison_of(name)
        cells = [
            str(Interval.of([result.error for result in comparison.of(arm)]))
            for arm in (*BASELINES, "sam")
        ]
        gain = str(Interval.of(comparison.differences("sam", "base_2x")))
        seeds = str(len(comparison.of("sam")))
        rows.append(f"| {' | '.join([HEADLINES[name], *cells, gain, seeds])} |")
    return "\n".join(rows)


def summary_table() -> str:
    """The three arms of every comparison that has them."""
    rows = [
        "| data, network, optimizer | base | base, twice the epochs | SAM | SAM minus base "
        "| SAM minus base, twice the epochs | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in EVIDENCE:
        comparison = comparison_of(name)
        if "base_2x" not in comparison.arms:
            continue
        cells = [
            f"{Interval.of([r.error for r in comparison.of(arm)])} "
            f"({comparison.of(arm)[0].gradient_evaluations:,})"
            for arm in (*BASELINES, "sam")
        ]
        differences = [str(Interval.of(comparison.differences("sam", arm))) for arm in BASELINES]
        seeds = str(len(comparison.of("sam")))
        rows.append(f"| {' | '.join([TITLES[name], *cells, *differences, seeds])} |")
    hardware = {comparison_of(name).record.hardware for name in EVIDENCE}
    return "\n".join([*rows, "", f"Hardware: {'; '.join(sorted(hardware))}."])


def overview_text() -> str:
    """What the picture of all comparisons shows, counted."""
    return overview.summary(overview.all_rows(sorted(CARDS.glob("*.json"))))


def results_table(name: str) -> str:
    """One comparison: its table, its plot and the command that made it."""
    comparison = comparison_of(name)
    record = comparison.record
    versions = ", ".join(f"{k} {record.versions[k]}" for k in ("torch", "transformers", "timm"))
    return "\n\n".join(
        [
            f"```bash\n{comparison.command}\n```",
            comparison_table(comparison),
            f"![error against gradient evaluations](../model_cards/{name}.png)",
            f"{record.hardware}; {versions}; {record.date}. Every run: "
            f"[JSON](../model_cards/{name}.json); its card: [{name}](../model_cards/{name}.md).",
        ]
    )


def gains_table(name: str) -> str:
    """What each method costs, and what it keeps of SAM's gain over base."""
    comparison = comparison_of(name)
    base = comparison.of("base")[0].gradient_evaluations
    rows = [
        "| arm | cost, runs of base | top-1 error, % | less than base by | share of SAM's gain "
        "| gain minus 90 % of SAM's | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in comparison.arms:
        pairs = list(zip(gains(comparison, arm), gains(comparison, "sam"), strict=False))  # by seed
        own, sams = zip(*pairs, strict=True)
        cost = comparison.of(arm)[0].gradient_evaluations / base
        error = Interval.of([result.error for result in comparison.of(arm)])
        gain, share, margin = "-", "-", "-"
        if arm != "base":
            gain, share = str(Interval.of(own)), f"{sum(own) / sum(sams):.0%}"
            margin = str(Interval.of([g - 0.9 * s for g, s in pairs]))
        cells = [f"`{arm}`", f"{cost:.4g}", str(error), gain, share, margin, str(len(own))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def gains(comparison: Comparison, arm: str) -> list[float]:
    return [-difference for difference in comparison.differences(arm, "base")]


def flatness_table(name: str) -> str:
    """SAM's minima beside the base optimizer's: the table over seeds, the command and pictures."""
    reports = flatness.reports_of(name)
    first = reports[0]
    versions = ", ".join(f"{k} {first.versions[k]}" for k in ("torch", "transformers", "timm"))
    setup = first.portraits[0].sharpness.setup
    return "\n\n".join(
        [
            f"```bash\n{first.command}\n```",
            flatness.table_of(reports),
            f"{len(reports)} seeds, {setup.examples} images, {setup.parameters:,} parameters, "
            f"{setup.mode}, {setup.dtype}; {versions}; {first.date}. The command is the first "
            f"seed's; [every number](../model_cards/sharpness).",
            *(
                f"![{kind} of the first seed](../model_cards/sharpness/{name}-{kind}.png)"
                for kind in ("contours", "spectrum")
            ),
        ]
    )
