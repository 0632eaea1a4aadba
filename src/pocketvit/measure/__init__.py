"""Measurement: agreement, accuracy, latency, cost, environment. Takes runners; knows nothing of targets."""
