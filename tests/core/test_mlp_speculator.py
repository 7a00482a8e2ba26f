"""IBM's heads: their formulas in plain loops, their files, the trees they fill, and that the output stays the target's."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from scipy import stats

from specplug import Speculator
from specplug.drafters import DraftRequest, expand
from specplug.drafters.mlp_speculator import MLPSpeculator, candidate_tree
from specplug.errors import OptionError, UnsupportedError
from specplug.mlp import CPUHeads, Heads, HeadsConfig, HeadsRunner, cpu, read_config, read_heads, save_heads
from specplug.needs import Need
from specplug.round import run_round
from specplug.subtree import beginning
from specplug.tree import TreeShape
from specplug.trees import Chain, Dynamic, KAry, Sequoia

from .test_tree import parent_lists
from .tools import CPU, TableHost, joint_law, plain_greedy, table

VOCAB, HIDDEN = 6, 5
CONFIG = HeadsConfig(VOCAB, HIDDEN, inner_dim=4, n_predict=3, top_k_tokens_per_head=(3, 2, 1), n_candidates=3)
VARIANTS = {
    "plain": CONFIG,
    "tied": replace(CONFIG, tie_weights=True),
    "scaled": replace(CONFIG, scale_input=True),
    "inner 0": replace(CONFIG, inner_dim=0),
    "one head": replace(CONFIG, n_predict=1, top_k_tokens_per_head=(3,), tie_weights=True),
    "two tied": replace(CONFIG, n_predict=2, top_k_tokens_per_head=(), tie_weights=True),
}


def random_heads(config, seed=0, dtype=torch.float64):
    """Heads whose every weight is random, norms included."""
    heads = Heads(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in heads.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return heads.requires_grad_(False)


class HiddenHost(TableHost):
    """A table host that gives hidden states. A fake: they are a fixed random vector for each pair of last tokens."""

    def batch(self):
        batch = super().batch()
        vectors = torch.randn(
            self.vocab_size, self.vocab_size, HIDDEN, generator=torch.Generator().manual_seed(9), dtype=torch.float64
        )
        ends = self.ends[self.active]
        before = self.text[self.active, ends - 3]
        dtype = getattr(torch, self.identity[2])
        return replace(batch, hidden=vectors[before, self.before_root(batch)].to(dtype))


def make(sampling=False, rows=3, seed=0, vocab=VOCAB, dtype="float64", **more):
    prompts = [[row % vocab, (row + 1) % vocab, (2 * row + 1) % vocab] for row in range(rows)]
    host = HiddenHost(table(vocab, 0), table(vocab, 1), prompts, sampling=sampling, seed=seed, **more)
    host.identity = ("table", "cpu", dtype)
    host.capabilities = host.capabilities | {Need.HIDDEN_STATES}
    return host


# --- the formulas, number by number


def saved(heads, folder, dtype=None):
    save_heads(heads, folder, dtype)
    return load_file(folder / "model.safetensors")


def by_hand(config, tensors, hidden, tokens):
    """Logits of every head for one text, from the tensors as published: [n_predict][V], with nothing but Python's numbers.

    `hidden` [D] of the token before `tokens`, of which head i reads the i-th.
    """

    def weights(kind, head, tensor="weight"):
        if config.tie_weights:
            head = min(head, 1) if kind == "proj" else 0
        return tensors[f"speculator.{kind}.{head}.{tensor}"].tolist()

    def product(matrix, vector):
        return [sum(w * x for w, x in zip(row, vector, strict=True)) for row in matrix]

    def normed(vector):
        size = math.sqrt(sum(x * x for x in vector) / len(vector) + 1e-6)
        return [x / size for x in vector]

    inner = config.inner_dim or config.emb_dim
    w_s = 0.5 ** (0.5 / config.n_predict)
    w_e = math.sqrt((1 - w_s**2) * inner / 2)
    state = hidden.tolist()
    if config.scale_input:
        state = [x / math.sqrt(2) for x in normed(state)]
    result = []
    for head in range(config.n_predict):
        emb = weights("emb", head)[tokens[head]]
        state = [p + w_e / w_s * e for p, e in zip(product(weights("proj", head), state), emb, strict=True)]
        scale, shift = weights("ln", head), weights("ln", head, "bias")
        state = [x * a + b for x, a, b in zip(normed(state), scale, shift, strict=True)]
        state = [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in state]
        result.append(product(weights("head", head), state))
    return result


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_heads_are_the_papers_formulas(config, tmp_path):
    heads = random_heads(config)
    tensors = saved(heads, tmp_path)
    hidden = torch.randn(2, 3, HIDDEN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = torch.randint(0, VOCAB, (2, 3 + config.n_predict - 1), generator=torch.Generator().manual_seed(2))
    along = list(heads(hidden, tokens))
    assert len(along) == config.n_predict
    for row, place in itertools.product(range(2), range(3)):
        wanted = by_hand(config, tensors, hidden[row, place], tokens[row, place:].tolist())
        for head in range(config.n_predict):
            got = along[head][row, place]
            torch.testing.assert_close(got, torch.tensor(wanted[head], dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("copied", [True, False], ids=["two layouts", "one layout"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_the_layout_for_a_cpu_gives_the_same_numbers(config, copied, monkeypatch):
    if not copied:
        monkeypatch.setattr(cpu, "COPIED_BYTES", 0)
    heads = random_heads(config)
    quick = CPUHeads(heads)
    assert all((level.columns is not None) == copied for level in quick._levels)
    generator = torch.Generator().manual_seed(1)
    for rows in range(1, cpu.FEW_ROWS + 3):
        hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64)
        hidden[0] *= 1e-3  # where what keeps the norm from dividing by nothing counts
        state, own = heads.start(hidden), quick.start(hidden)
        for head in range(config.n_predict):
            tokens = torch.randint(0, VOCAB, (rows,), generator=generator)
            state, own = heads.step(state, tokens, head), quick.step(own, tokens, head)
            torch.testing.assert_close(quick.logits(own, head), heads.logits(state, head), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_layout_for_a_cpu_takes_every_dtype_and_keeps_what_is_tied_once(dtype):
    heads = random_heads(VARIANTS["tied"], dtype=torch.float64)
    quick = CPUHeads(heads.to(dtype))
    hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens = torch.tensor([1, 4])
    wanted = heads.logits(heads.step(heads.start(hidden), tokens, 0), 0)
    got = quick.logits(quick.step(quick.start(hidden), tokens, 0), 0)
    assert got.dtype == dtype
    loose = {torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(got, wanted, rtol=loose, atol=loose)
    first, *others = quick._levels
    assert all(level.columns is first.columns and level.emb.data_ptr() == first.emb.data_ptr() for level in others)
    assert others[0].proj is others[1].proj and others[0].proj is not first.proj
    assert first.emb.data_ptr() == heads.emb[0].weight.data_ptr()


# --- files


def published_names(config):
    tied = config.tie_weights
    count = config.n_predict
    kinds = [(kind, range(1 if tied else count)) for kind in ("emb", "head", "ln")]
    names = {f"speculator.{kind}.{i}.weight" for kind, places in kinds for i in places}
    names |= {f"speculator.ln.{i}.bias" for i in range(1 if tied else count)}
    return names | {f"speculator.proj.{i}.weight" for i in range(min(count, 2) if tied else count)}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_names_and_keys_are_the_published_ones_and_read_back(config, tmp_path):
    heads = random_heads(config)
    assert set(saved(heads, tmp_path)) == published_names(config)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "mlp_speculator"
    keys = {"model_type", "vocab_size", "emb_dim", "inner_dim", "n_predict", "top_k_tokens_per_head", "n_candidates"}
    assert set(written) == keys | {"tie_weights", "scale_input"}
    read = read_heads(tmp_path, read_config(tmp_path), VOCAB, CPU)
    assert read.config == replace(config, top_k_tokens_per_head=config.widths)
    for (name, one), (other, two) in zip(heads.state_dict().items(), read.state_dict().items(), strict=True):
        assert name == other and torch.equal(one, two)
    assert not any(p.requires_grad for p in read.parameters())
    half = read_heads(tmp_path, read_config(tmp_path), VOCAB, CPU, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_tied_tensors_may_stand_there_once_anywhere_or_often(tmp_path):
    config = replace(CONFIG, tie_weights=True)
    heads = random_heads(config)
    tensors = saved(heads, tmp_path)
    last = {  # only the last head's names
        name.replace(".0.", ".2.").replace(".1.", ".2.") if "proj.0" not in name else name: t
        for name, t in tensors.items()
    }
    assert "speculator.proj.2.weight" in last and "speculator.proj.0.weight" in last
    often = {f"speculator.{name}": t.clone() for name, t in heads.state_dict().items()}
    assert len(often) == 3 * 5
    for variant in (last, often):
        save_file(variant, tmp_path / "model.safetensors")
        read = read_heads(tmp_path, config, VOCAB, CPU)
        assert all(torch.equal(one, two) for one, two in zip(heads.parameters(), read.parameters(), strict=True))
        assert read.emb[0] is read.emb[2] and read.proj[1] is read.proj[2]


def test_several_files_make_one_checkpoint(tmp_path):
    heads = random_heads(CONFIG)
    tensors = list(saved(heads, tmp_path).items())
    (tmp_path / "model.safetensors").unlink()
    save_file(dict(tensors[:7]), tmp_path / "model-00001-of-00002.safetensors")
    save_file(dict(tensors[7:]), tmp_path / "model-00002-of-00002.safetensors")
    read = read_heads(tmp_path, CONFIG, VOCAB, CPU)
    assert all(torch.equal(one, two) for one, two in zip(heads.parameters(), read.parameters(), strict=True))


def spoil(folder, **values):
    """Change `config.json`: other values, or None to leave a key out."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"n_predict": 0}, "n_predict=0 must be"),
        ({"emb_dim": "5"}, "emb_dim='5' must be"),
        ({"top_k_tokens_per_head": [2, 2]}, r"top_k_tokens_per_head=\[2, 2\] needs one entry for each of n_predict=3"),
        ({"top_k_tokens_per_head": 3}, "must be a list"),
        ({"tie_weights": 1}, "tie_weights=1 must be true or false"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_at_construction(values, message, tmp_path):
    save_heads(random_heads(CONFIG), tmp_path)
    spoil(tmp_path, **values)
    with pytest.raises(OptionError, match=message):
        MLPSpeculator(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(OptionError, match="no folder .*nowhere"):
        MLPSpeculator(str(tmp_path / "nowhere"))
    with pytest.raises(OptionError, match=r"config\.json"):
        MLPSpeculator(tmp_path)
    save_heads(random_heads(CONFIG), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(OptionError, match=r"config\.json"):
        MLPSpeculator(tmp_path)
    save_heads(random_heads(CONFIG), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(OptionError, match=r"model\.safetensors"):
        MLPSpeculator(tmp_path).open(make())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=r"no \*\.safetensors in"):
        MLPSpeculator(tmp_path).open(make())


def test_sizes_that_do_not_match_name_tensor_shape_found_and_shape_needed(tmp_path):
    heads = random_heads(CONFIG)
    save_heads(heads, tmp_path)
    other = make(vocab=7)
    for drafter in (MLPSpeculator(tmp_path), MLPSpeculator(heads=heads)):
        with pytest.raises(OptionError, match=r"speculator\.emb\.0\.weight has shape \[6, 4\].* need \[7, 4\]"):
            drafter.open(other)
    spoil(tmp_path, inner_dim=3)  # a file that is not as its configuration says
    with pytest.raises(OptionError, match=r"speculator\.emb\.0\.weight has shape \[6, 4\].* need \[6, 3\]"):
        MLPSpeculator(tmp_path).open(make())
    spoil(tmp_path, inner_dim=4, n_predict=4, top_k_tokens_per_head=None)
    with pytest.raises(OptionError, match=r"speculator\.emb\.3\.weight is missing; it has shape \[6, 4\]"):
        MLPSpeculator(tmp_path).open(make())


def test_another_hidden_size_names_the_tensor_before_anything_is_drafted():
    wide = random_heads(replace(CONFIG, emb_dim=9))
    host = make()
    drafter = MLPSpeculator(heads=wide).open(host)
    with pytest.raises(OptionError, match=r"speculator\.proj\.0\.weight has shape \[4, 9\].* need \[4, 5\]"):
        drafter.draft(DraftRequest(host.batch(), Chain(2).build()))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a checkpoint"),
        ({"path": "x", "heads": Heads(CONFIG)}, "needs a checkpoint"),
        ({"heads": "x"}, "heads='x' must be Heads"),
        ({"heads": Heads(CONFIG), "stop": 2.0}, "stop=2.0 must be a probability"),
    ],
)
def test_a_checkpoint_is_needed_and_one_is_enough(given, message):
    with pytest.raises(OptionError, match=message):
        MLPSpeculator(**given)


def test_a_host_without_hidden_states_is_refused_by_name():
    spec = Speculator(drafter=MLPSpeculator(heads=random_heads(CONFIG)), controller="fixed")
    host = make()
    host.capabilities = host.capabilities - {Need.HIDDEN_STATES}
    with pytest.raises(UnsupportedError, match="'MLPSpeculator' needs hidden_states, which HiddenHost"):
        spec.open(host)


def test_generations_share_weights_by_device_and_dtype(tmp_path):
    save_heads(random_heads(CONFIG), tmp_path)
    drafter = MLPSpeculator(tmp_path)
    first, again, half = (drafter.open(make(dtype=name))._runner.heads for name in ("float64", "float64", "bfloat16"))
    assert first is again and first is not half
    assert first.dtype == torch.float64 and half.dtype == torch.bfloat16
    assert drafter.key == f"MLPSpeculator[{tmp_path.name} 3x4]" and MLPSpeculator(tmp_path, stop=0.5).key != drafter.key


# --- the trees


@pytest.fixture(params=[Heads, CPUHeads])
def layout(request):
    """The heads as modules, or laid out for a CPU."""
    return (lambda heads: heads) if request.param is Heads else CPUHeads


def chosen(host, heads, shape, layout, **more):
    batch = host.batch()
    return batch, expand(host, HeadsRunner(layout(heads)), DraftRequest(batch, shape, **more))


def test_a_tree_is_cut_to_the_heads_and_its_own_follows_the_configuration():
    drafter = MLPSpeculator(heads=random_heads(CONFIG))
    for shape in (Chain(7).build(), Sequoia(12, 6).build(), KAry(2, 2).build()):
        assert drafter.fitted(shape) == shape.cut(3)
    own = candidate_tree(CONFIG)
    assert own.size == 9 and own.depth == 3
    assert drafter.shapes()[0] == own and Chain(3).build() in drafter.shapes()
    assert [shape.size for shape in drafter.shapes()] == [9, 6, 4, 3, 1] and drafter.shapes()[2] == beginning(own, 4)
    counts = [own.parents.count(node) for node in range(own.num_nodes)]
    for (start, stop), most in zip(own.levels[:-1], CONFIG.widths, strict=True):
        assert max(counts[start:stop]) <= most
    assert candidate_tree(replace(CONFIG, n_candidates=1, top_k_tokens_per_head=())) == Chain(3).build()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parent_lists(12))
def test_every_node_continues_its_own_path(layout, parents):
    """Children are the most probable tokens by the formulas, with the states of the path that leads there."""
    shape = TreeShape.from_parents(parents)
    counts = [shape.parents.count(node) for node in range(shape.num_nodes)]
    if shape.depth > 3 or max(counts) > VOCAB:
        return
    heads, host = random_heads(CONFIG), make()
    batch, trees = chosen(host, heads, shape, layout)
    for row, node in itertools.product(range(batch.num_rows), range(shape.num_nodes)):
        if not counts[node]:
            continue
        path = [node]
        while shape.parents[path[0]] >= 0:
            path.insert(0, shape.parents[path[0]])
        tokens = trees.tokens[row, path].tolist()
        state = heads.start(batch.hidden[row])
        for head, token in enumerate(tokens):
            state = heads.step(state, torch.tensor(token), head)
        best = heads.logits(state, len(tokens) - 1).argsort(descending=True).tolist()
        children = [child for child, parent in enumerate(shape.parents) if parent == node]
        assert trees.tokens[row, children].tolist() == best[: len(children)]


@pytest.mark.parametrize("size", [3, 6, 11])
def test_grown_trees_know_every_nodes_probability(layout, size):
    heads, host = random_heads(CONFIG), make(rows=4)
    batch, trees = chosen(host, heads, Dynamic(size, 3).build(), layout, grown=True, explain=True)
    for row, node in itertools.product(range(batch.num_rows), range(1, trees.num_nodes)):
        path = [node]
        while trees.parents[row, path[0]] > 0:
            path.insert(0, int(trees.parents[row, path[0]]))
        state, before = heads.start(batch.hidden[row]), batch.roots[row]
        for head, place in enumerate(path):
            state = heads.step(state, before, head)
            law, before = heads.logits(state, head).float().softmax(-1), trees.tokens[row, place]
        torch.testing.assert_close(trees.confidence[row, node], law[before], rtol=1e-4, atol=1e-6)


def test_it_stops_below_what_is_improbable():
    host, heads = make(), random_heads(CONFIG)
    request = DraftRequest(host.batch(), Chain(3).build())
    sizes = [MLPSpeculator(heads=heads, stop=stop).open(host).draft(request).num_nodes for stop in (0.0, 1.0)]
    assert sizes == [4, 2]


# --- the output


def finish(host, spec):
    session = spec.open(host)
    while len(host.active):
        session.observe(run_round(host, session))
    spec.finish(session)


@pytest.mark.parametrize("tree", ["auto", "chain:length=5", "sequoia:size=8,depth=4", "dynamic:size=8,depth=3"])
@pytest.mark.parametrize("stop", [0.0, 0.4])
def test_greedy_text_is_the_targets(tree, stop):
    drafter = MLPSpeculator(heads=random_heads(CONFIG), stop=stop)
    host = make(new_tokens=[20, 7, 13])
    finish(host, Speculator(drafter=drafter, tree=tree, controller="fixed"))
    for row in range(3):
        assert host.result(row) == plain_greedy(host.target, host.prompts[row], [20, 7, 13][row])


@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=5,depth=3", "dynamic:size=4,depth=2"])
def test_sampled_text_has_the_targets_law(tree):
    """20 000 rows of three tokens against the exact law; a false alarm has probability 1e-5."""
    rows, vocab = 20_000, 3
    config = replace(CONFIG, vocab_size=vocab, top_k_tokens_per_head=())
    target = table(vocab, 0)
    host = HiddenHost(target, target, [[0, 1, 2]] * rows, sampling=True, seed=4, new_tokens=3)
    host.capabilities = host.capabilities | {Need.HIDDEN_STATES}
    finish(host, Speculator(drafter=MLPSpeculator(heads=random_heads(config)), tree=tree, controller="fixed"))
    texts = host.text[:, 3:6]
    seen = torch.bincount(texts[:, 0] * vocab**2 + texts[:, 1] * vocab + texts[:, 2], minlength=vocab**3)
    expected = joint_law(target, [1, 2], 3) * rows
    assert stats.chisquare(seen.double(), expected).pvalue > 1e-5
