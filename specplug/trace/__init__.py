"""Traces: what a generation did, round by round, and one page to look at it.

with specplug.trace.recording() as recording:
    model.generate(**inputs, assistant=spec, max_new_tokens=96)
Path("trace.html").write_text(specplug.trace.page(recording, tokenizer.decode))
"""

from specplug.trace.description import describe
from specplug.trace.document import page, render
from specplug.trace.recorder import recording
from specplug.trace.records import Generation, Node, Origin, Recording, RoundRecord, RowRecord, RowRound, TokenRecord

__all__ = [
    "Generation",
    "Node",
    "Origin",
    "Recording",
    "RoundRecord",
    "RowRecord",
    "RowRound",
    "TokenRecord",
    "describe",
    "page",
    "recording",
    "render",
]
