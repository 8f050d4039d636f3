"""Test whether two networks, or two sets of seeds, differ significantly in accuracy."""

import statistics
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ttest_ind_from_stats

SIGNIFICANCE_LEVEL = 0.05  # a difference with a smaller p-value is significant


@dataclass(frozen=True)
class Verdict:
    """How the accuracy changed, and how strong the evidence is."""

    drop: float  # the loss of accuracy; negative for a gain
    p_value: float  # probability of a difference this large if there were no real difference
    evidence: str
    max_drop: float  # a larger drop counts as worse, even if it is not significant

    @property
    def direction(self) -> str:
        """Return better, worse or same."""
        significant = self.p_value < SIGNIFICANCE_LEVEL
        if self.drop > self.max_drop or (significant and self.drop > 0):
            return "worse"
        return "better" if significant else "same"

    @property
    def summary(self) -> str:
        """Return the direction as a phrase."""
        if self.drop > self.max_drop:
            return f"Worse by {self.drop:.6f}, but only {self.max_drop} is allowed"
        if self.direction == "same":
            return "No evidence of a difference"
        return f"Significantly {self.direction}"


def compute_p_value(fixed: int, broken: int) -> float:
    """Return the p-value of McNemar's exact test (1947).

    Images that both networks classify correctly, or both incorrectly, say nothing about a
    difference. If there were no difference, each of the other images would be fixed or broken with
    equal probability, as in the toss of a coin.
    """
    return float(binomtest(broken, fixed + broken).pvalue) if fixed + broken else 1.0


def compute_welch_p_value(before: list[float], after: list[float]) -> float:
    """Return the p-value of Welch's t-test (1947), which allows different variances.

    Each list needs at least two values.
    """
    old, new = (
        (statistics.mean(side), statistics.stdev(side), len(side)) for side in (before, after)
    )
    if not (old[1] or new[1]):  # without any spread, t would be 0/0 or infinite
        return float(old[0] == new[0])
    # scipy computes moments with less precision than `statistics`, and warns of small spreads.
    return float(ttest_ind_from_stats(*old, *new, equal_var=False).pvalue)


def adjust_p_values(p_values: pd.Series) -> pd.Series:
    """Return the p-values adjusted for testing several hypotheses: Holm's method (1979).

    With ten classes, an unadjusted test would often find a class that seems to have changed. The
    adjusted p-values limit the probability of even one such error.
    """
    ordered = p_values.sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p_values.index)


def compare_runs(fixed: int, broken: int, count: int, max_drop: float) -> Verdict:
    """Compare two networks on the same `count` test images.

    The verdict holds only for these two networks. Other seeds can give other networks.
    """
    p_value = compute_p_value(fixed, broken)
    evidence = (
        f"{fixed} image{'' if fixed == 1 else 's'} fixed, {broken} broken (McNemar's exact test, "
        f"p = {p_value:.2g})"
    )
    return Verdict((broken - fixed) / count, p_value, evidence, max_drop)


def compare_seeds(before: list[float], after: list[float], max_drop: float) -> Verdict:
    """Compare two sets of test accuracies, each from training with several seeds.

    Uses Welch's t-test. An accuracy is a mean over many images, so it is close enough to normally
    distributed. Rank tests, such as Mann and Whitney's, cannot reach 5 % with three seeds on each
    side.
    """
    old, new = statistics.mean(before), statistics.mean(after)
    p_value = compute_welch_p_value(before, after)
    evidence = (
        f"mean accuracy {old:.3%} ± {statistics.stdev(before):.3%} over {len(before)} seeds "
        f"before, {new:.3%} ± {statistics.stdev(after):.3%} over {len(after)} after (Welch's "
        f"t-test, p = {p_value:.2g})"
    )
    # The digits of a mean after the 12th are rounding errors.
    return Verdict(round(old - new, 12), p_value, evidence, max_drop)
