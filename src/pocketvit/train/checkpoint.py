"""The newest state of a training on disk: one safetensors file, written whole or not at all, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadInput
from ..files import replace_file
from ..types import METADATA_KEY

FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A training after `epochs` whole epochs. identity: all that decides its outcome, in plain JSON types."""

    epochs: int
    history: tuple[dict[str, Any], ...]
    identity: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]

    def save(self, work: Path) -> None:
        """Replace the checkpoint in `work`; raises BadInput when the disk is full."""
        from safetensors.torch import save_file

        tensors = {f"weights/{name}": tensor for name, tensor in self.weights.items()}
        tensors |= {f"averaged/{name}": tensor for name, tensor in self.averaged.items()}
        for i, state in self.optimizer.items():
            tensors |= {f"optimizer/{i}/{name}": tensor for name, tensor in state.items()}
        about = {"epochs": self.epochs, "history": self.history, "identity": self.identity}
        with replace_file(work / FILE) as partial:
            # safetensors refuses tensors that share memory (tied weights): each is written on its own
            separate = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(separate, partial, metadata={METADATA_KEY: json.dumps(about)})
        for unfinished in work.glob(f".partial-*-{FILE}"):  # left by a process that was killed while writing
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, work: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
        """Read the checkpoint in `work`, None when there is none.

        One made by a training with another identity, or damaged, raises BadInput naming what differs.
        """
        from safetensors import SafetensorError, safe_open

        path = work / FILE
        if not path.exists():
            return None
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "averaged": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[METADATA_KEY])
                for key in file.keys():  # noqa: SIM118 - not a dict: it cannot be iterated
                    group, _, name = key.partition("/")
                    groups[group][name] = file.get_tensor(key)
            epochs, history, made_by = int(about["epochs"]), tuple(about["history"]), about["identity"]
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise BadInput(f"{path} is not a readable checkpoint ({error}); delete it to train anew.") from error
        if different := _differences(made_by, json.loads(json.dumps(identity))):
            raise BadInput(
                f"{path} belongs to another training: it differs in {', '.join(different)}. "
                "Choose another folder, or delete it to train anew."
            )
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, tensor in groups["optimizer"].items():
            index, _, name = key.partition("/")
            optimizer.setdefault(int(index), {})[name] = tensor
        return cls(
            epochs=epochs,
            history=history,
            identity=made_by,
            weights=groups["weights"],
            averaged=groups["averaged"],
            optimizer=optimizer,
        )

    def restore(self, student: nn.Module, averaged: nn.Module | None, optimizer: torch.optim.Optimizer) -> None:
        """Put the state back, in place."""
        student.load_state_dict(self.weights)
        if averaged is not None:
            averaged.load_state_dict(self.averaged)
        groups = optimizer.state_dict()["param_groups"]  # learning rates are a function of the step, set before it
        optimizer.load_state_dict({"state": self.optimizer, "param_groups": groups})

    @property
    def result(self) -> Mapping[str, Tensor]:
        """The weights to use: averaged over steps where the training averages, else the last."""
        return self.averaged or self.weights


def _differences(mine: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the entries in which two identities differ, nested ones with dots."""
    names = []
    for key in sorted(mine.keys() | other.keys()):
        a, b = mine.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
