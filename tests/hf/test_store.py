"""The stores of keys and values: which rows move when others leave, and how large a store is from the start."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from generate_tools import Models, make_models, prompt, same, speculator

from specplug_hf.paged import PagedStore
from specplug_hf.paged.store import PAGE
from specplug_hf.store import SCRATCH, KVStore, compacted, slots_for

ROWS = 5


@pytest.fixture(scope="module")
def models() -> Models:
    return make_models("float64")


def filled(kind: type[KVStore] = KVStore, capacity: int = 2 * PAGE, **more: Any) -> KVStore:
    """A store whose row b holds nothing but b."""
    store = kind([(torch.zeros(ROWS, 2, 3, 4), torch.zeros(ROWS, 2, 3, 4))], capacity, **more)
    for part in (store.keys[0], store.values[0]):
        part += torch.arange(ROWS)[:, None, None, None]
    return store


@pytest.mark.parametrize("count", range(1, ROWS + 1))
def test_only_the_last_rows_move_and_only_where_others_left(count: int) -> None:
    for rows in combinations(range(ROWS), count):
        order = compacted(rows)
        assert sorted(order) == list(rows)
        for place, row in enumerate(order):
            assert row == place or (row >= count and place not in rows)


@pytest.mark.parametrize("kind", [KVStore, PagedStore])
def test_rows_stay_what_they_were(kind: type[KVStore]) -> None:
    store, left = filled(kind, **({"kernel": "torch"} if kind is PagedStore else {})), list(range(ROWS))
    for gone in (1, 4, 0):
        order = compacted([place for place, row in enumerate(left) if row != gone])
        store.keep_rows(order)
        left = [left[place] for place in order]
        for part in store.columns(0, 3):
            assert part[:, 0, 0, 0].tolist() == left
        if isinstance(store, PagedStore):
            indptr, pages = store.pages(torch.device("cpu"))
            pool = store.keys[0].transpose(1, 2).flatten(0, 1).unflatten(0, (-1, PAGE))
            for place, row in enumerate(left):
                assert (pool[pages[indptr[place] : indptr[place + 1]].long()] == row).all()


def test_a_store_has_room_for_the_call_if_that_no_more_than_doubles_it() -> None:
    assert slots_for(1000, 96) == 1096 + SCRATCH
    assert slots_for(10, 96) == 20 + SCRATCH


@pytest.mark.parametrize("drafter", ["prompt_lookup", "model", "self"])
def test_a_store_does_not_grow_during_a_call_that_is_no_longer_than_its_prompt(
    drafter: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {**prompt(3, "left", length=90), "max_new_tokens": 90, "do_sample": False}
    expected = models.target.generate(**call)

    def grown(*_: object) -> None:
        raise AssertionError("a store grew")

    monkeypatch.setattr(KVStore, "_grown", grown)
    same(models.target.generate(**call, assistant=speculator(drafter, models)), expected)
    short = {**prompt(3, "left", length=9), "max_new_tokens": 90, "do_sample": False}
    with pytest.raises(AssertionError, match="a store grew"):  # or the check above could not fail
        models.target.generate(**short, assistant=speculator(drafter, models))
