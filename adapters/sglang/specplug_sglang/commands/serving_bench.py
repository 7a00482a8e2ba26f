"""The measurement: the same requests to every server in turn, at a fixed number in flight."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer

from specplug import OptionError
from specplug_sglang.commands.bench import SETUPS
from specplug_sglang.commands.servers import Server


@dataclass(frozen=True, slots=True)
class Turn:
    """One server's turn. `latency`: median seconds between the tokens of a request, its first token left out."""

    server: str
    concurrency: int
    tokens_per_second: float
    latency: float
    accepted_length: float


class ServingBench:
    """`specplug bench --adapter sglang`."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.turns: list[Turn] = []
        self._answers: dict[str, dict[tuple[int, ...], list[int]]] = {}  # by server and prompt
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        files = sorted(arguments.texts.glob("*.txt")) or sorted(arguments.texts.glob("*.py"))
        texts = [tokenizer(path.read_text(errors="replace")[:40000])["input_ids"] for path in files[:40]]
        self._texts = [ids for ids in texts if len(ids) >= arguments.context]
        if not self._texts:
            raise OptionError(f"--texts {arguments.texts}: no .txt or .py file of {arguments.context} tokens there.")

    @property
    def different(self) -> set[str]:
        """The servers that answered a prompt otherwise than the plain one."""
        plain = self._answers.get("plain", {})
        return {name for name, answers in self._answers.items() if any(plain[p] != ids for p, ids in answers.items())}

    def run(self) -> int:
        """Measure, print, write; 0, or 1 if an output differs from the plain server's."""
        names = [name for name in self.arguments.setups if name != "model" or self.arguments.draft is not None]
        with ExitStack() as stack:
            servers = [stack.enter_context(self._server(name)) for name in names]
            for server in servers:
                server.wait()
            asyncio.run(self._measure(servers))
        self._print(names)
        if self.arguments.json:
            written = {"turns": [asdict(turn) for turn in self.turns], "different": sorted(self.different)}
            self.arguments.json.write_text(json.dumps(written, indent=2) + "\n")
        return 1 if self.different else 0

    def _server(self, name: str) -> Server:
        a = self.arguments
        return Server(name, a.model, a.draft, SETUPS[name], a.server_args)

    async def _measure(self, servers: Sequence[Server]) -> None:
        rounds = [(turn, n) for turn in range(self.arguments.turns + 1) for n in self.arguments.concurrency]
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for turn, concurrency in track(rounds, description="turns", console=Console(stderr=True)):
                prompts = self._prompts(turn)
                for server in servers if turn % 2 else servers[::-1]:
                    found = await self._turn(session, server, prompts, concurrency)
                    if turn:  # the first one warms up, and teaches `auto`
                        self.turns.append(found)

    async def _turn(
        self, session: aiohttp.ClientSession, server: Server, prompts: list[list[int]], concurrency: int
    ) -> Turn:
        await session.post(f"{server.url}/flush_cache")
        gate = asyncio.Semaphore(concurrency)

        async def ask(prompt: list[int]) -> tuple[float, int, float]:
            async with gate:
                return await self._ask(session, server, prompt)

        start = perf_counter()
        answers = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        seconds = perf_counter() - start
        return Turn(
            server=server.name,
            concurrency=concurrency,
            tokens_per_second=sum(count for _, count, _ in answers) / seconds,
            latency=statistics.median(latency for latency, _, _ in answers),
            accepted_length=statistics.mean(length for _, _, length in answers),
        )

    async def _ask(self, session: aiohttp.ClientSession, server: Server, prompt: list[int]) -> tuple[float, int, float]:
        """One request; its latency, tokens and accepted length."""
        params = {"temperature": 0, "max_new_tokens": self.arguments.new_tokens, "ignore_eos": True}
        first = last = 0.0
        piece: dict[str, Any] = {}
        ids: list[int] = []
        body = {"input_ids": prompt, "sampling_params": params, "stream": True}
        async with session.post(f"{server.url}/generate", json=body) as response:
            async for line in response.content:
                if not line.startswith(b"data:") or b"[DONE]" in line:
                    continue
                piece, last = json.loads(line[5:]), perf_counter()
                first = first or last
                new = piece["output_ids"]  # all that there is, or what is new: SGLang streams either
                ids = new if new[: len(ids)] == ids else ids + new
        self._answers.setdefault(server.name, {})[tuple(prompt)] = ids
        meta = piece["meta_info"]
        count = meta["completion_tokens"]
        return (last - first) / max(1, count - 1), count, meta.get("spec_accept_length", 1.0)

    def _prompts(self, turn: int) -> list[list[int]]:
        """This turn's prompts: random places of the texts."""
        dice, context = random.Random(turn), self.arguments.context
        chosen = [dice.choice(self._texts) for _ in range(self.arguments.requests)]
        starts = [dice.randrange(len(ids) - context + 1) for ids in chosen]
        return [ids[start : start + context] for ids, start in zip(chosen, starts, strict=True)]

    def _print(self, names: Sequence[str]) -> None:
        table = Table(
            title=f"{self.arguments.context} tokens of prompt, {self.arguments.new_tokens} new; medians [quartiles]"
        )
        for head in ("in flight", "server", "tokens a second", "x plain", "ms a token", "tokens a round", "outputs"):
            table.add_column(head, justify="left" if head == "server" else "right")
        for concurrency in self.arguments.concurrency:
            for name in names:
                self._row(table, concurrency, name)
        Console(width=120).print(table)

    def _row(self, table: Table, concurrency: int, name: str) -> None:
        def of(server: str) -> list[Turn]:
            return [t for t in self.turns if t.server == server and t.concurrency == concurrency]

        own, plain = of(name), of("plain")
        ratios = [a.tokens_per_second / b.tokens_per_second for a, b in zip(own, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        table.add_row(
            str(concurrency),
            name,
            f"{statistics.median(t.tokens_per_second for t in own):.0f}",
            f"{middle:.2f} [{low:.2f}-{high:.2f}]",
            f"{1e3 * statistics.median(t.latency for t in own):.1f}",
            f"{statistics.mean(t.accepted_length for t in own):.2f}",
            "DIFFERENT" if name in self.different else "identical",
        )
