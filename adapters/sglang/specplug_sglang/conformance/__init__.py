"""The adapter as a subject of the conformance suite."""
