"""Continuous batching in simulated time: the real controllers against a world whose times they cannot read."""
