"""The algebra of moving data without computing: reshape, permute, select and slice in a row, as one value.

Whatever is chained, the result is: cut the axes of the source into atoms, keep a range of each, put the atoms in
another order, and read the whole as some shape. An atom is a factor of one axis, as 7 is of 56 in a window partition.
Nothing here knows of torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

Shape = tuple[int, ...]


class Unaligned(Exception):
    """Two reshapes cut an axis at places that have no common refinement, as 6 into 2 x 3 and into 3 x 2."""


@dataclass(frozen=True, slots=True)
class Atom:
    """`length` of the `size` steps of one factor of the source's axis `axis`, from `start` on."""

    axis: int
    size: int
    start: int
    length: int

    @property
    def is_whole(self) -> bool:
        """True where nothing is left out."""
        return self.length == self.size

    def cut(self, outer: int) -> tuple[Atom, Atom]:
        """Two atoms for one, the outer of `outer` steps; Unaligned where the kept range does not allow it."""
        inner = self.length // outer
        if self.length % outer or self.size % inner or self.start % inner:
            raise Unaligned
        return (
            Atom(self.axis, self.size // inner, self.start // inner, outer),
            Atom(self.axis, inner, 0, inner),
        )


@dataclass(frozen=True, slots=True)
class Rearrangement:
    """source: the shape that is read. atoms: its factors above 1, row by row. order: which of them make up the
    result, outermost first; of those that are not in it one step is kept. shape: of the result.
    """

    source: Shape
    atoms: tuple[Atom, ...]
    order: tuple[int, ...]
    shape: Shape

    @classmethod
    def identity(cls, shape: Sequence[int]) -> Self:
        """Leave everything where it is."""
        atoms = tuple(Atom(axis, side, 0, side) for axis, side in enumerate(shape) if side > 1)
        return cls(tuple(shape), atoms, tuple(range(len(atoms))), tuple(shape))

    def reshape(self, shape: Sequence[int]) -> Rearrangement:
        """Read the result as another shape of as many elements."""
        return replace(self, shape=tuple(shape))

    def permute(self, axes: Sequence[int]) -> Rearrangement:
        """Put the axes of the result in another order. Raises Unaligned."""
        fine, groups = self.aligned()
        order = tuple(i for axis in axes for i in groups[axis])
        return replace(fine, order=order, shape=tuple(self.shape[axis] for axis in axes))

    def keep(self, axis: int, start: int, length: int) -> Rearrangement:
        """Keep `length` steps of one axis of the result, from `start`. Raises Unaligned where no atoms say so."""
        if length == self.shape[axis]:
            return self
        fine, groups = self.aligned()
        atoms, group, inner = list(fine.atoms), groups[axis], 1
        for place in reversed(range(len(group))):  # the atom that is cut; those inside it are kept whole
            atom = atoms[group[place]]
            first, count = start // inner, length // inner
            is_range = start % inner == 0 and length % inner == 0
            if is_range and first // atom.length == (first + count - 1) // atom.length:
                break
            inner *= atom.length
        else:
            raise Unaligned
        for outer in reversed(group[: place + 1]):  # of those around it, one step
            atom = atoms[outer]
            atoms[outer] = replace(atom, start=atom.start + first % atom.length, length=count)
            first, count = first // atom.length, 1
        order = tuple(i for i in fine.order if atoms[i].length > 1)
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        return Rearrangement(self.source, tuple(atoms), order, shape)

    def select(self, axis: int, index: int) -> Rearrangement:
        """Keep one step of an axis and drop the axis. Raises Unaligned."""
        kept = self.keep(axis, index % self.shape[axis], 1)
        return kept.reshape((*self.shape[:axis], *self.shape[axis + 1 :]))

    def then(self, after: Rearrangement) -> Rearrangement:
        """This one, then `after`, as one. Raises Unaligned."""
        if after.is_reshape:
            return self.reshape(after.shape)
        result = self.reshape([atom.size for atom in after.atoms])
        for axis, atom in enumerate(after.atoms):
            result = result.keep(axis, atom.start, atom.length)
        dropped = [i for i in range(len(after.atoms)) if i not in after.order]
        return result.permute([*after.order, *dropped]).reshape(after.shape)

    def inverse(self) -> Rearrangement:
        """The way back, of one that leaves nothing out."""
        if not self.is_whole:
            raise ValueError("What was left out cannot be brought back.")
        fine, groups = self.aligned()
        atoms = tuple(replace(fine.atoms[i], axis=axis) for axis, group in enumerate(groups) for i in group)
        return Rearrangement(
            self.shape, atoms, tuple(fine.order.index(i) for i in range(len(fine.atoms))), self.source
        )

    def aligned(self) -> tuple[Rearrangement, list[list[int]]]:
        """The same, cut so that each axis of the result is a run of whole atoms, and those runs. Raises Unaligned."""
        atoms, order = list(self.atoms), list(self.order)
        runs: list[int] = []  # how many atoms of the order each axis takes
        at = 0
        for side in self.shape:
            begin = at
            while side > 1:
                if at == len(order):
                    raise Unaligned
                atom = atoms[order[at]]
                if side % atom.length:
                    if atom.length % side:
                        raise Unaligned
                    cut = order[at]
                    atoms[cut : cut + 1] = atom.cut(side)
                    order = [i + 1 if i > cut else i for i in order]
                    order.insert(at + 1, cut + 1)
                side //= atoms[order[at]].length
                at += 1
            runs.append(at - begin)
        groups, at = [], 0
        for count in runs:
            groups.append(order[at : at + count])
            at += count
        return replace(self, atoms=tuple(atoms), order=tuple(order)), groups

    def merged(self, keep: Sequence[int] = ()) -> Rearrangement:
        """The same with as few atoms as there can be: those that stay together are one.

        keep: axes of the source that are not merged with the axis before them. The axis of a merged atom is that of
        its outermost part.
        """
        atoms, order = list(self.atoms), list(self.order)
        i = 0
        while i + 1 < len(atoms):
            outer, inner = atoms[i], atoms[i + 1]
            stay = i in order and i + 1 in order and order.index(i + 1) == order.index(i) + 1
            one_step = i not in order and (inner.is_whole or i + 1 not in order)
            apart = inner.axis != outer.axis and inner.axis in keep
            if apart or not (one_step or (stay and inner.is_whole)):
                i += 1
                continue
            start = outer.start * inner.size + inner.start
            atoms[i : i + 2] = [Atom(outer.axis, outer.size * inner.size, start, outer.length * inner.length)]
            if stay:
                order.remove(i + 1)
            order = [j - 1 if j > i else j for j in order]
        return replace(self, atoms=tuple(atoms), order=tuple(order))

    def axis_before(self, axis: int) -> int | None:
        """The axis of the source that, whole and in its order, is an axis of the result; None where none is."""
        try:
            fine, groups = self.aligned()
        except Unaligned:
            return None
        axes = {fine.atoms[i].axis for i in groups[axis]}
        if len(axes) != 1:
            return None
        (before,) = axes
        own = [i for i, atom in enumerate(fine.atoms) if atom.axis == before]
        return before if own == groups[axis] and all(fine.atoms[i].is_whole for i in own) else None

    def axis_behind(self, axis: int) -> int | None:
        """The axis of the result that, whole and in its order, was an axis of the source; None where none is."""
        return next((i for i in range(len(self.shape)) if self.axis_before(i) == axis), None)

    @property
    def is_whole(self) -> bool:
        """True where nothing is left out."""
        return math.prod(self.source) == math.prod(self.shape)

    @property
    def is_reshape(self) -> bool:
        """True where the elements stay in their order and none is left out."""
        return self.is_whole and list(self.order) == sorted(self.order)
