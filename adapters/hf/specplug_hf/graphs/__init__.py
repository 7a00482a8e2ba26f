"""Forwards of a generation recorded once and replayed: a whole draft over a fixed window, and verifies by their width."""

from specplug_hf.graphs.graphs import Graphs
from specplug_hf.graphs.recording import CudaRecording, Recording, recorder_of

__all__ = ["CudaRecording", "Graphs", "Recording", "recorder_of"]
