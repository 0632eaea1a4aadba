"""A training that kills its own process: `killed.py WORK STEP` at a step, `killed.py WORK write` while writing.

Run by test_resume.py; prints nothing and never ends by itself.
"""

import os
import signal
import sys
from pathlib import Path

import safetensors.torch
from small import train_fully


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def halfway(tensors, path, metadata):
    whole = safetensors.torch.save(tensors, metadata)
    Path(path).write_bytes(whole[: len(whole) // 2])
    die()


if __name__ == "__main__":
    work, when = Path(sys.argv[1]), sys.argv[2]
    if when == "write":
        safetensors.torch.save_file = halfway
    train_fully(work, progress=lambda task, done, total: die() if str(done) == when else None)
