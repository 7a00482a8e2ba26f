"""Tokens as text: whatever a decoder does, the pieces make up the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.trace.text import split_text, texts_of


def by_bytes(tokens):
    """A byte-level vocabulary: tokens are bytes."""
    return bytes(tokens).decode("utf-8", errors="replace")


WORDS = ["\u2581Hello", "\u2581world", "ly", "\u2581\u00e9t\u00e9", "\n", "\u2581"]


def by_words(tokens):
    """As SentencePiece does it: the first space of a text is dropped."""
    return "".join(WORDS[token % len(WORDS)] for token in tokens).replace("\u2581", " ").removeprefix(" ")


tokens = st.lists(st.integers(0, 255), max_size=40)
texts = st.lists(st.sampled_from("a\u00e9\u20ac\U0001f600\n "), max_size=12).map(lambda c: list("".join(c).encode()))


@given(tokens | texts, tokens | texts, st.sampled_from([by_bytes, by_words]))
def test_pieces_make_up_the_whole(before, after, decode):
    prompt, pieces = split_text(before, after, decode)
    assert len(pieces) == len(after)
    assert prompt + "".join(pieces) == decode([*before, *after])


def test_a_character_belongs_to_the_token_that_completes_it():
    prompt, pieces = split_text(list(b"x"), list("\u20aca".encode()), by_bytes)
    assert (prompt, pieces) == ("x", ["", "", "\u20ac", "a"])


def test_a_character_that_never_ends_is_shown_as_one_that_is_missing():
    assert split_text([], [0x61, 0xE2, 0x82], by_bytes)[1] == ["a", "\ufffd", ""]


def test_a_prompt_that_ends_within_a_character_gives_it_to_the_text():
    assert split_text([0x61, 0xE2, 0x82], [0xAC], by_bytes) == ("a", ["\u20ac"])


def test_a_long_prompt_is_not_decoded_again_for_every_token():
    asked = []

    def decode(ids):
        asked.append(len(ids))
        return by_bytes(ids)

    prompt, pieces = split_text(list(b"y" * 5000), list(b"z" * 20), decode)
    assert prompt == "y" * 5000 and pieces == ["z"] * 20
    assert sum(count > 100 for count in asked) == 1


@pytest.mark.parametrize(("near", "expected"), [([], "world"), ([2], " world"), ([5, 0], " world")])
def test_a_token_that_stands_alone_keeps_its_space(near, expected):
    assert texts_of([1, 2], by_words, near) == {1: expected, 2: "ly"}


def test_a_neighbour_that_is_no_whole_character_is_no_neighbour():
    assert texts_of([0xAC, 0x61], by_bytes, [0xE2, 0x62]) == {0xAC: "\ufffd", 0x61: "a"}
