"""The cheapest set of layers to keep float so that a file's own accuracy stays within a budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import CheckFailed
from .sensitivity import Sensitivity

MOST_TRIALS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One file made with some layers float: its own top-1 share (0..1), or why there is none.

    floats: every layer that is float in it, those that its target never quantizes among them.
    """

    keep: tuple[str, ...]
    top1: float | None
    problem: str = ""
    floats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """The layers to keep float, each with its reason, what the file then scores, and every trial on the way."""

    keep: tuple[str, ...]
    reasons: Mapping[str, str]
    top1: float
    trials: tuple[Trial, ...]


def within_budget(
    candidates: Sequence[Sensitivity],
    least_top1: float,
    attempt: Callable[[tuple[str, ...]], Trial],
    most_trials: int = MOST_TRIALS,
) -> Found:
    """Find few and cheap layers whose staying float brings the file to `least_top1`; every step makes a real file.

    candidates: most worth keeping first. attempt: makes the file with these layers float and scores it. First
    everything is quantized; then prefixes of the candidates, doubled until one suffices and bisected; then each kept
    layer, dearest first, is quantized again if the file can do without it. Raises CheckFailed, with the nearest miss,
    when all but the last candidate float is not enough.
    """
    search = _Search(least_top1, attempt, most_trials)
    order = [one.layer for one in candidates]
    kept = search.shortest_prefix(order)
    by_name = {one.layer: one for one in candidates}
    reasons: dict[str, str] = {}
    for layer in sorted(kept, key=lambda name: -by_name[name].share):
        if len(kept) == 1:  # nothing kept was tried first
            fallen: Trial | None = search.trials[()]
        else:
            fallen = search.without(kept, layer)
        if fallen is not None and search.holds(fallen):
            kept = [name for name in kept if name != layer]
            continue
        reasons[layer] = _reason(by_name[layer], fallen, least_top1)
    final = search.trials[tuple(sorted(kept))]
    assert final.top1 is not None  # it holds
    return Found(
        keep=final.keep,
        reasons={layer: reasons[layer] for layer in order if layer in reasons and layer in kept},
        top1=final.top1,
        trials=tuple(search.trials.values()),
    )


class _Search:
    """Makes each set of kept layers at most once."""

    def __init__(self, least_top1: float, attempt: Callable[[tuple[str, ...]], Trial], most_trials: int) -> None:
        self.least_top1 = least_top1
        self.attempt = attempt
        self.most_trials = most_trials
        self.trials: dict[tuple[str, ...], Trial] = {}

    def holds(self, trial: Trial) -> bool:
        # shares are ratios of counts: a billionth is rounding, far below one image
        return trial.top1 is not None and trial.top1 >= self.least_top1 - 1e-9

    def try_(self, keep: Sequence[str]) -> Trial:
        key = tuple(sorted(keep))
        if key not in self.trials:
            self.trials[key] = self.attempt(key)
        return self.trials[key]

    def without(self, kept: Sequence[str], layer: str) -> Trial | None:
        """The file with all of `kept` but this layer float; None where the trials are used up."""
        keep = [name for name in kept if name != layer]
        if tuple(sorted(keep)) not in self.trials and len(self.trials) >= self.most_trials:
            return None
        return self.try_(keep)

    def shortest_prefix(self, order: Sequence[str]) -> list[str]:
        low, high = -1, 0  # the longest prefix known to fall short, the next to try
        while not self.holds(self.try_(order[:high])):
            if high >= len(order) - 1:
                raise self._refusal(len(order))
            low, high = high, min(max(1, 2 * high), len(order) - 1)
        while high - low > 1:
            middle = (low + high) // 2
            if self.holds(self.try_(order[:middle])):
                high = middle
            else:
                low = middle
        return list(order[:high])

    def _refusal(self, layers: int) -> CheckFailed:
        scored = [trial for trial in self.trials.values() if trial.top1 is not None]
        if not scored:
            return CheckFailed(f"No file could be scored: {next(iter(self.trials.values())).problem}")
        best = max(scored, key=lambda trial: trial.top1 or 0)
        return CheckFailed(
            f"The budget cannot be met: top-1 must be at least {100 * self.least_top1:.2f}%, and the best of "
            f"{len(self.trials)} files, with {len(best.keep)} of {layers} layers float, has "
            f"{100 * (best.top1 or 0):.2f}%. Allow a larger drop, or choose another precision."
        )


def _reason(one: Sensitivity, fallen: Trial | None, least_top1: float) -> str:
    alone = f"quantized alone it leaves {one.sqnr_db:.1f} dB; {one.share:.1%} of the multiplications"
    if fallen is None:
        return f"{alone}; not tried without it"
    if fallen.top1 is None:
        return f"{alone}; without it the file fails: {fallen.problem}"
    return f"{alone}; a file without it scored {100 * fallen.top1:.2f}%, below {100 * least_top1:.2f}%"
