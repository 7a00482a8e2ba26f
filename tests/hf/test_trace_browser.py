"""The page of `specplug trace` in a real headless browser: what is drawn, clicked, typed and linked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, installed
from generate_tools import prompt, speculator

from specplug import Plan, Speculator, trace
from specplug.controllers import Fixed
from specplug.controllers.base import Prediction
from specplug.host import Batch
from specplug.trace import Recording, RowRound
from specplug_hf.demo import load_pair

NASTY = "</script><img src=x onerror=\"window.hacked='1'\"><b>$title &amp;"
PROMPT = 'def parse(text):\n    """Read the'


class Predicting(Fixed):
    """Does what it is told, and says what it expects: something else every round."""

    rounds = 0

    def plan(self, batch: Batch) -> Plan:
        self.rounds += 1
        return replace(super().plan(batch), predicted=Prediction(f"why not {self.rounds}", 2.25, 0.00125 * self.rounds))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = installed()
    if program is None:
        pytest.skip("no Chromium on this machine: the page is not opened in a browser")
    with browser(program, tmp_path_factory.mktemp("browser")) as running:
        yield running


@dataclass
class Shown:
    """A page that lies on disk, and what it was made of."""

    recording: Recording
    url: str
    texts: list[str]  # by row, the prompt left out

    def row(self, number: int, row: int = 0) -> RowRound:
        """What round `number` was for a row of the only generation."""
        return self.recording.generations[0].rounds[number].rows[row]


def write(folder: Path, recording: Recording, decode: Callable[[Sequence[int]], str]) -> Shown:
    (folder / "page.html").write_text(trace.page(recording, decode), encoding="utf-8")
    rows = trace.describe(recording, decode)["generations"][0]["rows"]
    return Shown(
        recording,
        (folder / "page.html").as_uri(),
        [row["prompt"] + "".join(t["text"] for t in row["tokens"]) for row in rows],
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """One row of the built-in pair, a tree a round."""
    target, draft, tokenizer = load_pair()
    spec = Speculator(draft_model=draft, drafter="model", tree="sequoia:size=8,depth=4", controller=Predicting())
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with trace.recording() as recording:
        target.generate(ids, assistant=spec, max_new_tokens=40)
    return write(tmp_path_factory.mktemp("single"), recording, tokenizer.decode)


@pytest.fixture(scope="module")
def several(fp32: Any, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Three rows of a tiny model, looked up; every token's text is an attack."""
    with trace.recording() as recording:
        assistant = speculator("prompt_lookup", fp32, "chain")
        fp32.target.generate(**prompt(3, "left"), assistant=assistant, max_new_tokens=14, do_sample=False)
    return write(
        tmp_path_factory.mktemp("several"), recording, lambda ids: "".join(f"\n{token}{NASTY}" for token in ids)
    )


def opened(chromium: Browser, address: str) -> Browser:
    chromium.noise.clear()
    chromium.requests.clear()
    chromium.open(address)
    return chromium


def silent(page: Browser, url: str) -> None:
    """Nothing went wrong, and nothing but the page itself was asked for."""
    assert page.noise == []
    assert [request.partition("#")[0] for request in page.requests] == [url.partition("#")[0]]


def count(page: Browser, selector: str) -> int:
    return int(page.value(f"document.querySelectorAll({json.dumps(selector)}).length"))


def text(page: Browser, selector: str) -> str:
    return str(page.value(f"document.querySelector({json.dumps(selector)}).textContent"))


def texts(page: Browser, selector: str) -> list[str]:
    return list(page.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"))


def number_shown(page: Browser) -> int:
    """The round that the panel shows, counted from 1."""
    return int(text(page, "#panel h2").split()[1])


def test_every_token_has_the_colour_of_its_origin(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, single.url)
    origins = Counter(t.origin.value for t in single.recording.generations[0].tokens(0))
    assert min(origins.values()) >= 1 and len(origins) == 3
    assert {name: count(page, f"#flow .token.{name}") for name in origins} == origins
    colours = page.value(
        "['accepted', 'bonus', 'plain'].map((n) => getComputedStyle(document.querySelector(`#flow .token.${n}`)).backgroundColor)"
    )
    assert len(set(colours)) == 3 and "rgba(0, 0, 0, 0)" not in colours
    assert text(page, "#flow") == single.texts[0]
    assert not page.value("[...document.querySelectorAll('#flow .token')].some((e) => !e.getClientRects().length)")
    legend = texts(page, "#legend li")
    assert [str(origins[name]) in line for name, line in zip(("accepted", "bonus", "plain"), legend, strict=True)] == [
        True
    ] * 3
    header = text(page, "#about")
    assert "Tokens40" in header and "ControllerPredicting" in header
    assert page.value("document.getElementById('chooser').hidden")
    silent(page, single.url)


def test_a_click_on_a_token_shows_its_round(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, single.url)
    (generation,) = single.recording.generations
    tokens = list(generation.tokens(0))
    number = max(range(len(generation.rounds)), key=lambda n: (single.row(n).accepted, n))
    mine, finished = single.row(number), generation.rounds[number]
    assert mine.accepted >= 2
    place = next(i for i, token in enumerate(tokens) if token.round == number) + 1  # its second token
    page.click(f'#flow [data-place="{place}"]')
    assert number_shown(page) == number + 1 and page.value("location.hash") == f"#round-{number + 1}"

    # the tree
    assert count(page, "#tree .node") == len(mine.nodes)
    assert count(page, "#tree .node.on-path") == count(page, "#tree .edge.on-path") == mine.accepted
    assert count(page, "#tree .edge:not(.to-own)") == len(mine.nodes) - 1
    assert count(page, "#tree .own.bonus") == 1
    shown = texts(page, "#tree .node .odds")
    assert shown[0] == "root"
    assert shown[1:] == [f"d {odds(node.draft)}  t {odds(node.target)}" for node in mine.nodes[1:]]
    assert texts(page, "#tree .own .odds") == [f"bonus  t {odds(mine.bonus)}"]
    assert count(page, "#tree .picked") == 1 and "on-path" in page.value(
        "document.querySelector('.picked').className.baseVal"
    )
    titles = texts(page, "#tree .node title")
    assert all(f"({node.token})" in title for node, title in zip(mine.nodes, titles, strict=True))
    path = texts(page, "#tree .node.on-path title")
    assert all(f"({token})" in title for token, title in zip(mine.tokens[:-1], path, strict=True))
    assert f"({mine.tokens[1]})" in text(page, "#tree .picked title")

    # the plan, what was expected of it and what it came to
    assert (text(page, "#arm"), text(page, "#reason")) == (finished.arm, f"why not {number + 1}")
    assert text(page, "#planned").startswith(f"{finished.size} draft tokens, depth {finished.depth}")
    work = sum(seconds for part, seconds in finished.seconds.items() if part != "plan")
    assert text(page, "#predicted-tokens") == "2.25" and text(page, "#real-tokens") == str(len(mine.tokens))
    assert seconds_of(text(page, "#predicted-seconds")) == pytest.approx(0.00125 * (number + 1), rel=0.01)
    assert seconds_of(text(page, "#real-seconds")) == pytest.approx(work, rel=0.01)
    for part, line in zip(("plan", "draft", "verify", "commit", "other"), texts(page, "#parts li"), strict=True):
        assert line.startswith(part)
        assert seconds_of(line.removeprefix(part)) == pytest.approx(finished.seconds[part], rel=0.01, abs=6e-7)

    # the other tokens of the round, and what else might have been there
    assert count(page, "#flow .token.mates") == len(mine.tokens)
    assert page.value("document.querySelector('#flow [aria-current]').dataset.place") == str(place)
    assert page.value("document.querySelector('#strip [aria-current]').dataset.round") == str(number)
    assert count(page, "#alternatives tr") == len(mine.tokens)
    assert count(page, "#alternatives td") == 3 * len(mine.tokens)
    assert count(page, "#alternatives td.chosen") == len(mine.tokens)  # greedy: every one is the most probable
    silent(page, single.url)


def odds(probability: float | None) -> str:
    """As the page writes it."""
    assert probability is not None
    if 0 < probability < 0.005:
        return "<.01"
    return ">.99" if probability > 0.995 else f"{probability:.2f}"[1:]


def seconds_of(shown: str) -> float:
    value, unit = shown.split()
    return float(value) * {"s": 1.0, "ms": 1e-3, "\u00b5s": 1e-6}[unit]


def test_the_first_token_is_in_no_round(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, single.url)
    page.click('#flow [data-place="0"]')
    assert "came with the prompt" in text(page, "#panel") and count(page, "#tree") == 0
    assert count(page, "#flow .mates") == count(page, "#strip [aria-current]") == 0
    page.press("ArrowDown")
    assert number_shown(page) == 1
    silent(page, single.url)


def test_a_bar_for_every_round(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, single.url)
    (generation,) = single.recording.generations
    assert count(page, "#strip .bar") == len(generation.rounds)
    heights = page.value("[...document.querySelectorAll('#strip span')].map((e) => e.getBoundingClientRect().height)")
    counts = [len(r.rows[0].tokens) for r in generation.rounds]
    assert [h / max(heights) for h in heights] == pytest.approx([c / max(counts) for c in counts], abs=0.03)
    page.click(f'#strip [data-round="{len(generation.rounds) - 2}"]')
    assert number_shown(page) == len(generation.rounds) - 1
    silent(page, single.url)


def test_the_keyboard_goes_everywhere(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, f"{single.url}#round-2")
    assert number_shown(page) == 2
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.press(key)
        seen.append((number_shown(page), page.value("location.hash")))
    assert seen == [(3, "#round-3"), (4, "#round-4"), (3, "#round-3")]
    for _ in range(100):
        page.press("ArrowLeft")
    assert number_shown(page) == 1
    for _ in range(60):  # into the text with the tabulator: one stop for all of its tokens
        page.press("Tab")
        if page.value("document.activeElement.matches('#flow .token')"):
            break
    first = int(page.value("document.activeElement.dataset.place"))
    assert first == 1  # the first token of the round that is shown
    page.press("Enter")
    assert page.value("document.querySelector('#flow [aria-current]').dataset.place") == "1"
    (generation,) = single.recording.generations
    tokens = list(generation.tokens(0))
    for step in range(1, 8):
        page.press("ArrowDown")
        assert page.value("document.activeElement.dataset.place") == str(first + step)
        expected = tokens[first + step].round
        assert expected is not None and number_shown(page) == expected + 1
    page.press("ArrowUp")
    assert page.value("document.activeElement.dataset.place") == str(first + 6)
    silent(page, single.url)


def test_a_link_opens_its_round(chromium: Browser, single: Shown) -> None:
    for number in (1, 3, len(single.recording.generations[0].rounds)):
        page = opened(chromium, f"{single.url}#round-{number}")
        assert number_shown(page) == number
        silent(page, single.url)
    page.value("location.hash = '#round-2'")
    page.value("new Promise((done) => setTimeout(done, 50))")
    assert number_shown(page) == 2
    for nonsense in ("#round-0", "#round-9999", "#row-7/round-1", "#<img>", "#"):
        page = opened(chromium, single.url + nonsense)
        assert number_shown(page) >= 1
        silent(page, single.url)


def test_texts_do_nothing_and_rows_are_chosen(chromium: Browser, several: Shown) -> None:
    page = opened(chromium, several.url)
    (generation,) = several.recording.generations
    assert not page.value("document.getElementById('chooser').hidden")
    assert texts(page, "#row option") == ["0", "1", "2"]
    for row in range(3):
        if row:
            page.value("document.getElementById('row').focus()")
            page.press("ArrowDown")
        assert text(page, "#flow") == several.texts[row]
        origins = Counter(t.origin.value for t in generation.tokens(row))
        assert {name: count(page, f"#flow .token.{name}") for name in origins} == origins
        rounds = [n for n, finished in enumerate(generation.rounds) if row in finished.rows]
        assert count(page, "#strip .bar") == len(rounds)
        for number in rounds[-1:], rounds[:1]:
            page.click(f'#strip [data-round="{number[0]}"]')
            mine, titles = several.row(number[0], row), texts(page, "#tree .node title")
            assert all(f"({node.token})" in title for node, title in zip(mine.nodes, titles, strict=True))
            assert text(page, "#real-tokens").split()[0] == str(len(mine.tokens))
    assert page.value("location.hash").startswith("#row-3")
    assert page.value("typeof window.hacked") == "undefined"
    assert count(page, "img, b, iframe") == 0 and count(page, "script") == 2
    silent(page, several.url)


def test_a_link_opens_its_row(chromium: Browser, several: Shown) -> None:
    page = opened(chromium, f"{several.url}#row-2/round-3")
    assert number_shown(page) == 3 and page.value("document.getElementById('row').value") == "1"
    assert text(page, "#flow") == several.texts[1]
    silent(page, several.url)


def test_what_was_looked_up_has_no_probability(chromium: Browser, several: Shown) -> None:
    number = next(n for n, _ in enumerate(several.recording.generations[0].rounds) if several.row(n).proposed)
    page = opened(chromium, f"{several.url}#round-{number + 1}")
    assert "looked up" in text(page, "#panel")
    mine = several.row(number)
    assert texts(page, "#tree .odds")[1 : len(mine.nodes)] == [f"d \u2013  t {odds(n.target)}" for n in mine.nodes[1:]]
    assert text(page, "#reason") == "the controller gives no reason" and text(page, "#predicted-seconds") == "\u2013"
    silent(page, several.url)


def test_light_and_dark(chromium: Browser, single: Shown) -> None:
    page = opened(chromium, single.url)
    found = []
    for scheme in ("light", "dark"):
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        style = "getComputedStyle(document.body)"
        found.append(page.value(f"[{style}.backgroundColor, {style}.color]"))
    page.call("Emulation.setEmulatedMedia", features=[])
    light, dark = ([sum(map(int, colour[4:-1].split(","))) for colour in pair] for pair in found)
    assert light[0] > 600 and light[1] < 300, "dark on light"
    assert dark[0] < 300 and dark[1] > 500, "light on dark"


def test_nothing_recorded_is_a_page_too(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "empty.html").write_text(trace.page(Recording(), str))
    page = opened(chromium, (tmp_path / "empty.html").as_uri())
    assert "No rounds were recorded" in text(page, "#panel")
    silent(page, page.requests[0])
