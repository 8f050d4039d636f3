"""Judge whether the accuracies of two networks, or of two recipes, differ by more than chance."""

import statistics
from dataclasses import dataclass

from scipy.stats import binomtest, ttest_ind

CHANCE = 0.05  # a difference less likely than this, were there none, is more than chance


@dataclass(frozen=True)
class Judgement:
    """What became of the accuracy, and what that rests on."""

    drop: float  # accuracy lost; below 0, won
    p_value: float  # how likely a difference as large is, were there none
    evidence: str
    allowed: float  # a larger drop is worse, whatever the chance

    @property
    def direction(self) -> str:
        """Return better, worse or same."""
        if self.drop > self.allowed or (self.p_value < CHANCE and self.drop > 0):
            return "worse"
        return "better" if self.p_value < CHANCE else "same"

    @property
    def verdict(self) -> str:
        """Return the direction in words."""
        if self.drop > self.allowed:
            return f"Worse, by {self.drop:.6f}, where {self.allowed} is allowed"
        return {
            "better": "Better, by more than chance",
            "same": "No evidence of a difference",
            "worse": "Worse, by more than chance",
        }[self.direction]


def judge_runs(fixed: int, broken: int, count: int, allowed: float) -> Judgement:
    """Judge two networks by the same `count` test digits, of which one fixed and broke so many.

    McNemar's test (1947), exact: were there no difference, each digit that only one of the two has
    right would be the one's or the other's like a coin's toss. Digits on which they agree say
    nothing. It judges these two networks, not what other seeds would have made of their recipes.
    """
    p_value = float(binomtest(broken, fixed + broken).pvalue) if fixed + broken else 1.0
    return Judgement(
        drop=(broken - fixed) / count,
        p_value=p_value,
        evidence=f"{fixed} digit{'' if fixed == 1 else 's'} fixed, {broken} broken "
        f"(McNemar's exact test, p = {p_value:.2g})",
        allowed=allowed,
    )


def judge_recipes(before: list[float], after: list[float], allowed: float) -> Judgement:
    """Judge two recipes by the test accuracies of the networks that each gave under several seeds.

    Welch's t-test (1947), which lets the two vary differently. An accuracy is a mean over many
    digits, so near enough to normal; and a test by ranks, such as Mann and Whitney's, cannot reach
    5 % with three seeds a side, whatever they show.
    """
    old, new = statistics.mean(before), statistics.mean(after)
    spread = statistics.stdev(before), statistics.stdev(after)
    # Without any spread t is 0/0 or infinite, and scipy warns instead of saying which.
    p_value = float(ttest_ind(before, after, equal_var=False).pvalue) if any(spread) else old == new
    return Judgement(
        drop=round(old - new, 12),  # what a mean's last digits say is rounding
        p_value=p_value,
        evidence=f"mean accuracy {old:.3%} ± {spread[0]:.3%} over {len(before)} seeds before, "
        f"{new:.3%} ± {spread[1]:.3%} over {len(after)} after (Welch's t-test, p = {p_value:.2g})",
        allowed=allowed,
    )
