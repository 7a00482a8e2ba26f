"""The page as a document: what it is made of, and that no text becomes markup. Its script runs in tests/hf/test_trace_browser.py."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from core.test_round import PROMPTS, host_of, speculator
from core.tools import TableHost, table
from specplug import trace

from .test_recorder import generate

TARGET, OTHER = table(30, 1), table(30, 9)  # a draft that is mostly wrong: its tokens are nobody else's
NASTY = "</script><img src=x onerror=\"alert('1')\"><!--<script>$data &amp; \u2028\u0000\u00e9"


def decode(tokens):
    return "".join(f"<{token}>{NASTY}" for token in tokens)


@pytest.fixture
def recording():
    with trace.recording() as made:
        generate(TableHost(TARGET, OTHER, PROMPTS, new_tokens=9), speculator("self", "sequoia:size=5,depth=3"))
        generate(host_of(TARGET, PROMPTS[:1], new_tokens=9), speculator("prompt_lookup", "chain:length=3"))
    return made


class Reader(HTMLParser):
    """Every start tag with its attributes, and what stands in each script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.titles = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data
        if self.tags and self.tags[-1][0] == "title":
            self.titles.append(data)

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))


def test_a_text_cannot_become_markup(recording):
    read = Reader(trace.page(recording, decode, title=NASTY, about={NASTY: NASTY}))
    assert "".join(read.titles).strip() == NASTY
    tags = [tag for tag, _ in read.tags]
    assert tags.count("script") == 2 and not {"img", "iframe", "object", "link", "base", "form"} & set(tags)
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]
    data = json.loads(read.scripts[0])
    assert data["about"] == {NASTY: NASTY}
    assert all(text.count(NASTY) == 1 for text in data["texts"].values())
    assert data == json.loads(json.dumps(trace.describe(recording, decode, {NASTY: NASTY})))


def test_nothing_in_the_script_makes_markup_of_text():
    script = "".join(map(trace.document._part, trace.document.SCRIPTS))
    for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "DOMParser"):
        assert door not in script


def test_the_page_asks_the_network_for_nothing(recording):
    text = trace.page(recording, str)
    read = Reader(text)
    assert not [(tag, name) for tag, a in read.tags for name in a if name in ("src", "href", "srcset", "action")]
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)


def test_the_data_is_the_recording(recording):
    data = trace.describe(recording, decode, {"Model": "tables"})
    first, second = data["generations"]
    assert [row["name"] for row in first["rows"]] == ["0", "1", "2", "3"] and len(second["rows"]) == 1
    assert first["controller"] == "Fixed" and first["model"] == "table"
    generation = recording.generations[0]
    for place, row in enumerate(first["rows"]):
        tokens = list(generation.tokens(place))
        assert [(t["token"], t["origin"], t["round"]) for t in row["tokens"]] == [
            (t.token, t.origin, t.round) for t in tokens
        ]
        assert row["prompt"] == decode(PROMPTS[place][:-1]) and row["prompt_tokens"] == len(PROMPTS[place]) - 1
        assert row["prompt"] + "".join(t["text"] for t in row["tokens"]) == decode(
            [*PROMPTS[place][:-1], *(t.token for t in tokens)]
        )
    for finished, kept in zip(first["rounds"], generation.rounds, strict=True):
        assert finished["seconds"] == kept.seconds and finished["arm"] == kept.arm
        for place, row in finished["rows"].items():
            mine = kept.rows[int(place)]
            assert [tuple(node.values()) for node in row["nodes"]] == [
                (n.token, n.parent, n.accepted, n.draft, n.target) for n in mine.nodes
            ]
            assert row["path"] == list(mine.path) and row["tokens"] == list(mine.tokens)
    shown = {
        node["token"]
        for g in data["generations"]
        for r in g["rounds"]
        for m in r["rows"].values()
        for node in m["nodes"]
    }
    assert shown <= {int(token) for token in data["texts"]}


def test_totals_count_every_token_once(recording):
    totals = trace.describe(recording, decode)["totals"]
    assert totals["tokens"] == 5 * 10  # nine a row, and the root of each
    assert totals["accepted"] + totals["bonus"] + totals["plain"] == 50
    every = [row for g in recording.generations for r in g.rounds for row in r.rows.values()]
    assert totals["accepted"] == sum(row.accepted for row in every)
    assert totals["proposed"] == sum(row.proposed for row in every)
    assert totals["rounds"] == sum(len(g.rounds) for g in recording.generations)
    assert totals["accepted_length"] == pytest.approx(45 / len(every))
    assert totals["tokens_per_second"] == pytest.approx(45 / totals["seconds"])


def test_an_empty_recording_is_a_page_too():
    with trace.recording() as nothing:
        pass
    data = json.loads(Reader(trace.page(nothing, str)).scripts[0])
    assert data["generations"] == [] and data["totals"]["tokens"] == 0


def test_a_number_that_json_lacks_is_an_error_here_and_not_in_the_browser():
    with pytest.raises(ValueError):
        trace.render({"a": math.nan}, "t")
