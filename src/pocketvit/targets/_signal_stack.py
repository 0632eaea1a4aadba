"""Puts back the stack on which signal handlers run, which OpenVINO replaces and then takes away."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SignalStack(ctypes.Structure):
    """C's stack_t on Linux: where the current thread's signal handlers run."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def current() -> SignalStack:
    """The current thread's alternate signal stack."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give the thread its own signal stack back after the body has created OpenVINO objects.

    Each `openvino.Core` that loads the CPU plugin installs a stack and puts the one before back when it is freed. Two
    of them freed in the order of their making leave the second's predecessor, freed memory: the next signal that
    Python handles (Ctrl-C, the end of a data loader's worker) then kills the process with SIGSEGV. A plugin whose
    stack is no longer the current one leaves it alone.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = current()
    try:
        yield
    finally:
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
