"""McNemar's test, which compares two arms image by image."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

from scipy.stats import binomtest

from ..reporting.markdown import Markdown, code, table
from .comparison import BASELINES, Comparison


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two arms on the same images; with several seeds, a sign test.

    An image counts for the arm that misclassifies it in fewer of the seeds that both have run;
    ties are dropped. The p-value is for a sample of other images with these models, whereas the
    interval over seeds is for other models.
    """

    better: int  # images that the arm misclassifies in fewer seeds than the baseline
    worse: int  # images that it misclassifies in more seeds
    p: float  # two-sided p-value

    @classmethod
    def of(cls, better: int, worse: int) -> Self:
        """Test the two counts, exactly, by the binomial distribution."""
        n = better + worse
        return cls(better, worse, float(binomtest(better, n).pvalue) if n else 1.0)

    def __str__(self) -> str:
        """Format as 52 : 31, p = 0.028."""
        p = f"= {self.p:.3f}" if self.p >= 0.001 else "< 0.001"
        return f"{self.better} : {self.worse}, p {p}"


def mcnemar(comparison: Comparison, arm: str, baseline: str) -> McNemar | None:
    """Compare an arm with a baseline on the images of the evaluation split.

    Returns:
        The test; None if no seed has the errors of both, image by image.
    """
    errors = {r.seed: r.errors for r in comparison.of(baseline) if r.errors}
    balance: Counter[int] = Counter()
    of_arm = {r.seed: r.errors for r in comparison.of(arm) if r.errors}
    shared = errors.keys() & of_arm.keys()
    for seed in shared:
        balance.update(errors[seed].wrong)
        balance.subtract(of_arm[seed].wrong)
    if not shared:
        return None
    signs = [value > 0 for value in balance.values() if value]
    return McNemar.of(sum(signs), len(signs) - sum(signs))


def paired_table(comparison: Comparison) -> Markdown:
    """Render a table with one row per arm that can be tested; empty if there is none."""
    baselines = [name for name in BASELINES if name in comparison.arms]
    rows = []
    for arm in comparison.arms:
        tests = [mcnemar(comparison, arm, name) if name != arm else None for name in baselines]
        if any(tests):
            rows.append([code(arm), *(str(test or "-") for test in tests)])
    if not rows:
        return Markdown("")
    titles = ["arm", *(Markdown(f"better : worse than {code(name)}") for name in baselines)]
    return table([titles, *rows])
