"""The prompts: the texts that ship, or the files of a folder."""

from __future__ import annotations

from pathlib import Path

from specplug import OptionError
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models


class Folder(Prompts):
    """Texts of a folder's `*.txt` files, in order of their names; a prompt starts with one and goes on with the next."""

    def __init__(self, models: Models, folder: str) -> None:
        super().__init__(models, builtin=False)
        path = Path(folder).expanduser()
        files = sorted(path.glob("*.txt")) if path.is_dir() else []
        if not files:
            raise OptionError(f"--prompts {folder!r}: it must be a folder with *.txt files.")
        self._files = files
        self._folder = folder

    def count(self) -> int:
        return len(self._files)

    def _row(self, index: int, length: int) -> list[int]:
        tokens: list[int] = []
        for offset in range(self.count()):
            tokens += self._tokens((index + offset) % self.count())
            if len(tokens) >= length:
                return tokens[:length]
        raise OptionError(f"--prompts {self._folder!r} gives {len(tokens)} tokens; a context of {length} is too long.")

    def _text_tokens(self, index: int) -> list[int]:
        text = self._files[index].read_text(encoding="utf-8", errors="replace")
        return list(self._models.tokenizer(text, add_special_tokens=False)["input_ids"])
