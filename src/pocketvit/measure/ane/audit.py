"""The audit itself: totals, and findings with what they waste, most wasteful first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...types import Evidence
from .graph import Graph, OpRecord, anywhere
from .matches import Match, Rewrite, Severity, off_engine
from .rules import RULES, Rule

_WHOLE = "whole model"
_ORDER = (Severity.BLOCKS, Severity.WASTE, Severity.RISK, Severity.ADVICE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One place where a rule applies.

    module, located and source as in OpRecord. shapes: of what the operation reads and writes. The bytes are those of
    the operations it answers for; an operation's waste is charged to one finding only, so they can be summed.
    """

    rule: str
    severity: Severity
    module: str
    located: str
    source: str
    op: str
    kind: str
    shapes: str
    what: str
    rewrite: Rewrite
    padded_bytes: int = 0
    logical_bytes: int = 0
    wasted_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Findings that differ in their place only, such as one per block. where: their path, numbers as '*'."""

    rule: str
    severity: Severity
    where: str
    rewrite: Rewrite
    count: int
    wasted_bytes: int
    worst: Finding


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was counted over a whole graph, in bytes as graph.py defines them; every number is predicted.

    largest_bytes: of one activation, padded. transposes are among the layout copies. off_engine: how many operations
    are predicted to run elsewhere; off_engine_reasons: how many for which reason. left_out: operations of unknown
    sizes, which no count of bytes holds.
    """

    name: str
    ops: int
    logical_bytes: int
    padded_bytes: int
    wasted_bytes: int
    layout_copies: int
    layout_copy_bytes: int
    transposes: int
    largest_bytes: int
    weight_bytes: int
    off_engine: int
    off_engine_reasons: Mapping[str, int]
    left_out: int
    highest_rank: int
    findings: tuple[Finding, ...] = field(repr=False)
    evidence: Evidence = Evidence.PREDICTED

    @property
    def padding_ratio(self) -> float:
        """Padded over logical traffic; 1 where nothing is padded."""
        return self.padded_bytes / self.logical_bytes if self.logical_bytes else 1.0

    @property
    def wasted_share(self) -> float:
        """Wasted over padded traffic."""
        return self.wasted_bytes / self.padded_bytes if self.padded_bytes else 0.0

    @property
    def small_padding_bytes(self) -> int:
        """Waste that no finding names: padding in operations that waste less than a fifth of their traffic."""
        return self.wasted_bytes - sum(finding.wasted_bytes for finding in self.findings)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Findings of one rule, rewrite and kind of place together: what blocks first, then by wasted bytes."""
        together: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            alike_places = finding.rule, finding.rewrite, anywhere(finding.module)
            together.setdefault(alike_places, []).append(finding)
        groups = [
            Group(
                rule=rule,
                severity=min((finding.severity for finding in alike), key=_ORDER.index),
                where=where,
                rewrite=alike[0].rewrite,
                count=len(alike),
                wasted_bytes=sum(finding.wasted_bytes for finding in alike),
                worst=max(alike, key=lambda finding: finding.wasted_bytes),
            )
            for (rule, _, where), alike in together.items()
        ]
        return tuple(sorted(groups, key=_by_weight))


def audit(ops: Sequence[OpRecord], name: str = "") -> Audit:
    """Count the traffic of `ops` and hold every rule against them."""
    graph = Graph(ops)
    charged: set[int] = set()
    findings = []
    for rule in RULES:
        for match in rule.find(graph):
            answers_for = [op for op in match.charged if id(op) not in charged]
            if match.charged and not answers_for:
                continue  # a more specific rule has named it already
            charged |= {id(op) for op in answers_for}
            findings.append(_finding(rule, match, answers_for))
    copies = [op for op in graph.ops if op.is_layout_copy]
    tensors = [tensor for op in graph.ops for tensor in op.outputs]
    elsewhere = Counter(filter(None, map(off_engine, graph.ops)))
    return Audit(
        name=name,
        ops=len(graph.ops),
        logical_bytes=sum(op.logical_bytes for op in graph.ops),
        padded_bytes=sum(op.padded_bytes for op in graph.ops),
        wasted_bytes=sum(op.wasted_bytes for op in graph.ops),
        layout_copies=len(copies),
        layout_copy_bytes=sum(op.padded_bytes for op in copies),
        transposes=sum(op.kind == "transpose" for op in copies),
        largest_bytes=max((tensor.padded_bytes for tensor in tensors), default=0),
        weight_bytes=sum(op.weight_bytes for op in graph.ops),
        off_engine=elsewhere.total(),
        off_engine_reasons=dict(elsewhere.most_common()),
        left_out=sum(op.is_left_out for op in graph.ops),
        highest_rank=max((op.highest_rank for op in graph.ops), default=0),
        findings=tuple(sorted(findings, key=_by_weight)),
    )


def _by_weight(found: Finding | Group) -> tuple[bool, int, int]:
    return found.severity is not Severity.BLOCKS, -found.wasted_bytes, _ORDER.index(found.severity)


def _finding(rule: Rule, match: Match, answers_for: Sequence[OpRecord]) -> Finding:
    op = match.op
    return Finding(
        rule=rule.id,
        severity=match.severity,
        module=(op.module or op.name) if op else _WHOLE,
        located=op.located if op else "op",
        source=op.source if op else "",
        op=op.name if op else "",
        kind=op.kind if op else "",
        shapes=f"{', '.join(map(str, op.inputs))} -> {', '.join(map(str, op.outputs))}" if op else "",
        what=match.what,
        rewrite=match.rewrite,
        padded_bytes=sum(one.padded_bytes for one in answers_for),
        logical_bytes=sum(one.logical_bytes for one in answers_for),
        wasted_bytes=sum(one.wasted_bytes for one in answers_for),
    )
