"""Attention over exactly four keys, which OpenVINO's CPU fuses into a kernel that computes something else.

OpenVINO 2026.4 turns product, softmax, product into one kernel. With four keys its answers are wrong (2 to 16 dB; with
1 to 3 and 5 to 17 they are right), and MobileViT has four on small maps. The kernel is made only around a Softmax
operation, so here softmax is exp(log_softmax), which stays operations of its own in whatever loads the file.
"""

from __future__ import annotations

from typing import Any

_KEYS = 4


def spell_out_four_keys(model: Any) -> None:
    """Replace, in place, what OpenVINO would fuse wrongly; everything else stays. Shapes must be known by now."""
    for operation in model.get_ordered_ops():
        kind, shape = operation.get_type_name(), operation.get_output_partial_shape(0)
        if kind == "ScaledDotProductAttention" and operation.get_input_partial_shape(1)[-2] == _KEYS:
            _replace(operation, _attention(operation))
        elif kind == "Softmax" and shape[-1] == _KEYS and operation.get_attributes()["axis"] in (-1, len(shape) - 1):
            _replace(operation, _softmax(operation.input_value(0)))
    model.validate_nodes_and_infer_types()


def _attention(operation: Any) -> Any:
    """softmax(scale q k^T + mask) v, one operation for each step."""
    import numpy as np
    from openvino import Type
    from openvino import opset13 as ops

    given = [operation.input_value(i) for i in range(operation.get_input_size())]
    queries, keys, values = given[:3]
    scale = given[4] if len(given) > 4 else np.float32(queries.get_shape()[-1] ** -0.5)
    scores = ops.multiply(ops.matmul(queries, keys, False, True), scale)
    if operation.get_attributes()["causal"]:
        allowed = np.tril(np.ones((queries.get_shape()[-2], _KEYS), bool))
        scores = ops.select(allowed, scores, np.float32(-np.inf))
    elif len(given) > 3 and given[3].get_element_type() == Type.boolean:
        scores = ops.select(given[3], scores, np.float32(-np.inf))
    elif len(given) > 3:
        scores = ops.add(scores, given[3])
    return ops.matmul(_softmax(scores), values, False, False)


def _softmax(scores: Any) -> Any:
    from openvino import opset13 as ops

    return ops.exp(ops.log_softmax(scores, -1))


def _replace(operation: Any, by: Any) -> None:
    by.set_friendly_name(operation.get_friendly_name())
    operation.output(0).replace(by.output(0))
