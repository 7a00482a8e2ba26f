"""Drafts with another tokenizer: what both vocabularies have in common is proposed, and the output is the target's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_tools import VOCAB, Models, prompt, same
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from specplug import Speculator, UnsupportedError
from specplug_conformance.llama.tiny import tiny
from specplug_hf.translation import TranslatedDraft, translation_between

NEW = 16


def words(texts: list[str]) -> Any:
    """A tokenizer whose token i is the word `texts[i]`; the first is its unknown word, the last but one its end."""
    model = WordLevel({text: i for i, text in enumerate(texts)}, unk_token=texts[0])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token=texts[-2])


TARGET_WORDS = ["<unk>", *(f"w{i}" for i in range(1, VOCAB - 2)), "</s>", "last"]


def permuted(models: Models, size: int = VOCAB) -> tuple[Any, Any]:
    """The target with its tokens in another order, `size` of them (the others are words of its own), and its tokenizer."""
    order = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(1))
    draft = tiny(vocab=size + 8, dtype="float64")
    own = copy.deepcopy(models.target.state_dict())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = torch.zeros((size + 8, own[name].shape[1]), dtype=torch.float64)
        rows[:size] = own[name][order[:size]]
        own[name] = rows
    draft.load_state_dict(own)
    texts = [TARGET_WORDS[i] for i in order[:size].tolist()] + [f"own{i}" for i in range(8)]
    vocabulary = {text: i for i, text in enumerate(texts)}
    model = WordLevel(vocabulary, unk_token=texts[-1])
    ends = {"eos_token": "</s>"} if "</s>" in vocabulary else {}
    return draft, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **ends)


def test_tokens_of_the_same_text_are_the_same() -> None:
    target, draft = words(["<unk>", "▁a", "b", "c", "</s>", "d"]), words(["?", "c", "Ġa", "x", "<end>", "b"])
    made = translation_between(target, draft, 8, 7)
    # "a" has its leading space in two notations; the ends are one
    assert made.from_draft.tolist() == [-1, 2, 5, 1, 4, -1, -1, -1]
    assert made.to_draft.tolist()[1:5] == [2, 5, 1, 4]
    logits = torch.arange(14, dtype=torch.float32).view(2, 7)
    moved = made.logits(logits)
    assert moved.shape == (2, 8) and moved[1].tolist()[1:5] == [9, 12, 8, 11]
    assert bool((moved[:, [0, 5, 6, 7]] == torch.finfo(torch.float32).min).all())


@pytest.mark.parametrize("kernel", ["auto", "paged"])
def test_a_draft_that_differs_in_nothing_but_its_tokens_is_always_right(fp64: Models, kernel: str) -> None:
    draft, tokenizer = permuted(fp64)
    spec = Speculator(
        draft_model=TranslatedDraft(draft, tokenizer, words(TARGET_WORDS)), drafter="model", tree="chain:length=3",
        controller="fixed", kernel=kernel,
    )  # fmt: skip
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "eos_token_id": None}
    same(fp64.target.generate(**call, assistant=spec), fp64.target.generate(**call))
    assert spec.stats.acceptance_by_depth[1] == 1.0 and spec.stats.accepted_length > 3


@pytest.mark.parametrize("size", [30, 85])
@pytest.mark.parametrize("tree", ["chain:length=3", "kary:branch=3,depth=2"])
def test_a_part_of_the_vocabulary_is_enough(fp64: Models, size: int, tree: str) -> None:
    draft, tokenizer = permuted(fp64, size)
    spec = Speculator(
        draft_model=TranslatedDraft(draft, tokenizer, words(TARGET_WORDS)),
        drafter="model",
        tree=tree,
        controller="fixed",
    )
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "eos_token_id": None}
    same(fp64.target.generate(**call, assistant=spec), fp64.target.generate(**call))
    assert spec.stats.accepted < spec.stats.proposed
    assert spec.stats.accepted or size == 30


def test_the_law_is_the_targets(fp64: Models) -> None:
    """The first two tokens of many rows, against the target's own law; the draft has half of the tokens."""
    draft, tokenizer = permuted(fp64, 48)
    spec = Speculator(
        draft_model=TranslatedDraft(draft, tokenizer, words(TARGET_WORDS)), drafter="model", tree="kary:branch=2,depth=1",
        controller="fixed", seed=5,
    )  # fmt: skip
    ids, rows = prompt(1)["input_ids"], 1500
    call = {"max_new_tokens": 3, "do_sample": True, "top_k": 0, "temperature": 1.5, "eos_token_id": None}
    out = fp64.target.generate(
        ids.expand(rows, -1), attention_mask=torch.ones(rows, ids.shape[1]), assistant=spec, **call
    )
    with torch.no_grad():
        second = fp64.target(torch.cat([ids.expand(VOCAB, -1), torch.arange(VOCAB)[:, None]], 1)).logits[:, -2:]
    first_law, second_laws = (second[0, 0] / 1.5).softmax(-1), (second[:, 1] / 1.5).softmax(-1)
    seen = torch.bincount(out[:, ids.shape[1] + 1], minlength=VOCAB).double()
    expected = (first_law @ second_laws) * rows
    common = expected >= 8
    observed = [*seen[common].tolist(), float(seen[~common].sum())]
    wanted = [*expected[common].tolist(), float(expected[~common].sum())]
    assert spec.stats.accepted > 0
    assert stats.chisquare(observed, wanted).pvalue > 1e-4


def test_tokenizers_are_found_by_the_models_names(fp64: Models, tmp_path: Path) -> None:
    draft, tokenizer = permuted(fp64, 60)
    draft.save_pretrained(tmp_path / "draft")
    tokenizer.save_pretrained(tmp_path / "draft")
    words(TARGET_WORDS).save_pretrained(tmp_path / "target")
    copy.deepcopy(fp64.target).save_pretrained(tmp_path / "target")
    target = type(fp64.target).from_pretrained(tmp_path / "target", dtype=torch.float64).eval()
    spec = Speculator(drafter="model", draft_model=str(tmp_path / "draft"), controller="fixed", tree="chain:length=2")
    call = {**prompt(2), "max_new_tokens": NEW, "eos_token_id": None}
    same(target.generate(**call, assistant=spec), target.generate(**call))
    assert spec.stats.accepted > 0
    assert AutoTokenizer.from_pretrained(tmp_path / "draft").get_vocab() == tokenizer.get_vocab()


def test_too_little_in_common_is_refused(fp64: Models) -> None:
    draft = tiny(vocab=40, dtype="float64")
    other = words([f"x{i}" for i in range(40)])
    spec = Speculator(
        draft_model=TranslatedDraft(draft, other, words(TARGET_WORDS)), drafter="model", controller="fixed"
    )
    with pytest.raises(UnsupportedError, match="share 1 of 40 tokens"):
        fp64.target.generate(**prompt(1), max_new_tokens=2, assistant=spec)
