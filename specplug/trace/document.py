"""One self-contained page: the text with every token coloured by its origin, and each round on a click.

Nothing is loaded from elsewhere, and texts reach the document only as text: as JSON in which no tag can begin, put in place
by `textContent`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from specplug.trace.description import describe
from specplug.trace.records import Recording
from specplug.trace.text import Decode

SCRIPTS = ("panel.js", "tree.js", "page.js")  # the last one starts


def page(
    recording: Recording, decode: Decode, title: str = "specplug trace", about: Mapping[str, str] | None = None
) -> str:
    """`recording` as an HTML document. `decode` makes text of token ids; `about`: shown in the header, label and value."""
    return render(describe(recording, decode, about), title)


def render(described: Mapping[str, Any], title: str) -> str:
    """The document for what `describe` gave."""
    data = json.dumps(described, allow_nan=False, separators=(",", ":"))
    script = "\n".join(_part(name) for name in SCRIPTS)
    return Template(_part("page.html")).substitute(
        title=escape(title), style=_part("page.css"), script=script, data=data.replace("<", "\\u003c")
    )


def _part(name: str) -> str:
    return (files("specplug.trace") / name).read_text(encoding="utf-8")
