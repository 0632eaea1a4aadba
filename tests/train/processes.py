"""One of several processes that train together: `torchrun --nproc-per-node 2 processes.py DIRECTORY`.

Trains a student; then a CNN with averaged weights, once straight through and once stopped in its second epoch and
resumed. Each process writes what it saw and what it ended with to DIRECTORY/RANK.json.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from safetensors.torch import save_file
from small import PLAIN, student

from pocketvit.data import open_data
from pocketvit.errors import BadInput
from pocketvit.models import create, weights_sha256
from pocketvit.train import fit


class Watched:
    """A data set that remembers which images were asked for, and fails at the `end`-th."""

    def __init__(self, images, end=None):
        self.images, self.end, self.seen = images, end, []
        self.name, self.labels, self.digest = images.name, images.labels, images.digest

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if len(self.seen) == self.end:
            raise InterruptedError
        self.seen.append(int(index))
        return self.images[index]


def main(directory: Path) -> None:
    rank = int(os.environ["RANK"])
    digits, val = open_data("digits", "train").take(384), open_data("digits", "val")
    few = Watched(open_data("digits", "train").take(128))
    # Each process starts from other random weights: training has to begin by making them the first one's.
    alone = fit(student(seed=rank), few, val, PLAIN, directory / "student")

    config = dataclasses.replace(PLAIN, epochs=3, lr=4e-2, ema_decay=0.5)

    def train_cnn(images, work):
        return fit(create("pocket_regnety_32", num_classes=10, seed=rank), images, val, config, directory / work)

    straight = train_cnn(digits, "straight")
    try:
        train_cnn(Watched(digits, end=250), "stopped")  # each process sees 192 images per epoch
    except InterruptedError:
        resumed = train_cnn(digits, "stopped")
    try:
        fit(student(), digits, val, dataclasses.replace(PLAIN, batch_size=33), directory / "odd")
    except BadInput as error:
        refusal = str(error)
    if rank == 0:
        save_file(alone.model.module.state_dict(), directory / "student.safetensors")
    report = {
        "seen": few.seen,
        "student": weights_sha256(alone.model.module),
        "straight": weights_sha256(straight.model.module),
        "resumed": weights_sha256(resumed.model.module),
        "same history": resumed.history == straight.history,
        "val_top1": straight.history[-1]["val_top1"],
        "refusal": refusal,
    }
    (directory / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
