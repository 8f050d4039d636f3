"""Test whether the accuracies of two networks, or of two recipes, differ significantly."""

import statistics
from dataclasses import dataclass

from scipy.stats import binomtest, ttest_ind

SIGNIFICANCE_LEVEL = 0.05  # a smaller p-value is significant


@dataclass(frozen=True)
class Judgement:
    """The difference in accuracy, and the evidence for it."""

    drop: float  # in accuracy; negative for a gain
    p_value: float  # the probability of such a difference if there is none
    evidence: str
    allowed: float  # a larger drop is worse, whatever the p-value

    @property
    def direction(self) -> str:
        """Return better, worse or same."""
        if self.drop > self.allowed or (self.p_value < SIGNIFICANCE_LEVEL and self.drop > 0):
            return "worse"
        return "better" if self.p_value < SIGNIFICANCE_LEVEL else "same"

    @property
    def verdict(self) -> str:
        """Return the direction in words."""
        if self.drop > self.allowed:
            return f"Worse by {self.drop:.6f}, and {self.allowed} is allowed"
        return {
            "better": "Significantly better",
            "same": "No evidence of a difference",
            "worse": "Significantly worse",
        }[self.direction]


def judge_runs(fixed: int, broken: int, count: int, allowed: float) -> Judgement:
    """Compare two networks on the same `count` test images.

    McNemar's exact test (1947): without a difference, an image that only one of the two classifies
    correctly is as likely to be one's as the other's. Images on which they agree say nothing.
    The test compares these two networks; with other seeds, the result can be different.
    """
    p_value = float(binomtest(broken, fixed + broken).pvalue) if fixed + broken else 1.0
    return Judgement(
        drop=(broken - fixed) / count,
        p_value=p_value,
        evidence=f"{fixed} image{'' if fixed == 1 else 's'} fixed, {broken} broken "
        f"(McNemar's exact test, p = {p_value:.2g})",
        allowed=allowed,
    )


def judge_recipes(before: list[float], after: list[float], allowed: float) -> Judgement:
    """Compare two recipes by the test accuracies that each reached with several seeds.

    Welch's t-test (1947) allows different variances. An accuracy is a mean over many images, so it
    is close to a normal distribution. A rank test such as Mann and Whitney's cannot reach 5 % with
    three seeds on each side.
    """
    old, new = statistics.mean(before), statistics.mean(after)
    spread = statistics.stdev(before), statistics.stdev(after)
    # Without any spread, t is 0/0 or infinite, and SciPy warns.
    p_value = float(ttest_ind(before, after, equal_var=False).pvalue) if any(spread) else old == new
    return Judgement(
        drop=round(old - new, 12),  # the last digits are rounding errors
        p_value=p_value,
        evidence=f"mean accuracy {old:.3%} ± {spread[0]:.3%} over {len(before)} seeds before, "
        f"{new:.3%} ± {spread[1]:.3%} over {len(after)} after (Welch's t-test, p = {p_value:.2g})",
        allowed=allowed,
    )


def adjust_p_values(p_values: list[float]) -> list[float]:
    """Return the p-values of several tests, corrected by Holm's method (1979)."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
