import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny import BOS, EOS, tiny_gpt2, tiny_llama, tiny_vit
from torch import nn
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hf_unlearn.data import UnlearningCollator
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.likelihood import TargetLogits, scored_positions, target_logits, target_statistics
from hf_unlearn.models.sampling import Sampling


EXACT = {"rtol": 1e-12, "atol": 1e-12}
SAMPLING = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=5),
    Sampling(top_p=0.8),
    Sampling(temperature=1.7, top_k=12, top_p=0.6),
    Sampling(top_k=10_000),
    Sampling(top_p=0.01),
    Sampling(top_p=1e-20),  # 1 - top_p is 1: the top token is kept all the same
]


def lora_llama():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(), config).eval()


CAUSAL = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "peft": lora_llama,
    "data_parallel": lambda: nn.DataParallel(tiny_gpt2(), device_ids=[]),
    "compiled": lambda: torch.compile(tiny_gpt2()),
}


@pytest.fixture(scope="module", params=CAUSAL)
def model(request):
    with torch.compiler.set_stance("force_eager"):  # what matters is the wrapper
        yield CAUSAL[request.param]().double()


def random_rows(seed=0, lengths=((3, 5), (1, 1), (6, 2), (2, 9))):
    """Encoded rows of (prompt, answer) lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for n_prompt, n_answer in lengths:
        ids = torch.randint(5, 320, (n_prompt + n_answer,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX] * n_prompt + ids[n_prompt:]})
    return rows


def padded(rows, side="right", extra=0, pad=2):
    length = max(len(row["input_ids"]) for row in rows) + extra
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        n = length - len(row["input_ids"])
        for name, values, filler in (
            ("input_ids", row["input_ids"], pad),
            ("attention_mask", [1] * len(row["input_ids"]), 0),
            ("labels", row["labels"], IGNORE_INDEX),
        ):
            batch[name].append([filler] * n + values if side == "left" else values + [filler] * n)
    return {name: torch.tensor(values) for name, values in batch.items()}


def plain_log_probs(model, row):
    """One unpadded call of the model and nothing of ours: a list of log-probabilities, one a scored token."""
    ids = torch.tensor(row["input_ids"])
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
    return [log_p[t - 1, ids[t]].item() for t in range(1, len(ids)) if row["labels"][t] != IGNORE_INDEX]


# --- target_logits ---


@pytest.mark.parametrize(("side", "extra", "pad"), [*product(["left", "right"], [0, 7], [2]), ("left", 3, BOS)])
def test_log_probs_are_those_of_plain_unpadded_calls(model, side, extra, pad):
    rows = random_rows()
    out = target_logits(model, padded(rows, side, extra, pad))
    expected = torch.tensor([value for row in rows for value in plain_log_probs(model, row)], dtype=torch.float64)
    torch.testing.assert_close(out.log_probs, expected, **EXACT)
    assert out.rows.tolist() == [i for i, n in enumerate((5, 1, 2, 9)) for _ in range(n)]
    assert out.lengths.tolist() == [5, 1, 2, 9]
    assert out.targets.tolist() == [y for row in rows for y in row["labels"] if y != IGNORE_INDEX]


def test_logits_are_a_slice_of_the_full_logits(model):
    batch = padded(random_rows())
    full = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = full[:, :-1][batch["labels"][:, 1:] != IGNORE_INDEX]
    torch.testing.assert_close(target_logits(model, batch).logits, expected, **EXACT)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_and_order_change_nothing(model, order, batch_size):
    rows = random_rows()
    expected = target_logits(model, padded(rows)).sequence_log_probs
    found = torch.empty_like(expected)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        found[indices] = target_logits(model, padded([rows[i] for i in indices], "left")).sequence_log_probs
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_a_pad_token_that_is_also_bos_and_eos_hides_no_real_token(build):
    model = build().double()
    ids = [EOS, 9, 8, EOS, 7, EOS]
    rows = [{"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]]}, *random_rows(lengths=[(2, 9)])]
    batch = UnlearningCollator(pad_token_id=EOS)(rows)
    assert batch["attention_mask"][0].tolist() == [1] * 6 + [0] * 5
    found = target_logits(model, batch)
    expected = [value for row in rows for value in plain_log_probs(model, row)]
    torch.testing.assert_close(found.log_probs, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_what_labels_and_inputs_hold_at_padding_does_not_matter_nor_where_labels_are_ignored():
    model = tiny_gpt2().double()
    batch = padded(random_rows())
    expected = target_logits(model, batch).log_probs
    batch["input_ids"][batch["attention_mask"] == 0] = 77
    torch.testing.assert_close(target_logits(model, batch).log_probs, expected, **EXACT)
    # The first column is never a target, whatever its label: nothing predicts it.
    batch["labels"][:, 0] = batch["input_ids"][:, 0]
    torch.testing.assert_close(target_logits(model, batch).log_probs, expected, **EXACT)


def test_ignored_targets_get_no_gradient():
    model = tiny_llama().double()
    batch = padded(random_rows())
    seen = []

    def watch(module, args, output):
        output.retain_grad()
        seen.append(output)

    model.lm_head.register_forward_hook(watch)
    out = target_logits(model, batch)
    out.sequence_log_probs[2].backward()
    gradient = seen[0].grad
    assert gradient[out.rows != 2].abs().max() == 0
    assert gradient[out.rows == 2].abs().max() > 0


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, lora_llama])
def test_one_forward_a_batch_and_the_head_sees_scored_positions_only(build):
    model = build()
    calls, head_rows = [], []
    model.register_forward_hook(lambda *_: calls.append(1))
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: head_rows.append(output.numel() // output.shape[-1])
    )
    target_logits(model, padded(random_rows()))
    assert calls == [1]
    assert head_rows == [5 + 1 + 2 + 9]


def test_a_model_that_cannot_be_told_which_logits_to_keep():
    config = OpenAIGPTConfig(vocab_size=320, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    model = OpenAIGPTLMHeadModel(config).eval().double()
    rows = random_rows()
    expected = [value for row in rows for value in plain_log_probs(model, row)]
    found = target_logits(model, padded(rows)).log_probs
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **EXACT)


def test_given_position_ids_are_used():
    model = tiny_gpt2().double()
    batch = padded(random_rows(lengths=[(3, 5)]))
    batch["position_ids"] = torch.arange(8)[None] + 20
    with torch.no_grad():
        full = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    torch.testing.assert_close(target_logits(model, batch).logits.detach(), full[0, 2:7], **EXACT)


def test_inputs_are_left_as_they_were():
    batch = padded(random_rows())
    before = {name: value.clone() for name, value in batch.items()}
    target_logits(tiny_llama(), batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[name], before[name]) for name in batch)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_become_float32_and_float64_stays(dtype):
    batch = padded(random_rows())
    assert target_logits(tiny_llama().to(dtype), batch).logits.dtype == torch.float32
    assert target_logits(tiny_llama().double(), batch).logits.dtype == torch.float64


def test_image_classifier():
    model = tiny_vit().double()
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([4, IGNORE_INDEX, 0, 2])
    out = target_logits(model, {"pixel_values": images, "labels": labels})
    log_p = torch.log_softmax(model(pixel_values=images).logits, -1)
    torch.testing.assert_close(out.log_probs, torch.stack([log_p[0, 4], log_p[2, 0], log_p[3, 2]]), **EXACT)
    assert out.rows.tolist() == [0, 2, 3]
    assert out.lengths.tolist() == [1, 0, 1, 1]
    assert out.sequence_log_probs[1] == 0


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_vit])
def test_nothing_to_score_gives_zero_and_finite_gradients(build):
    model = build()
    if build is tiny_vit:
        batch = {"pixel_values": torch.randn(2, 3, 16, 16), "labels": torch.full((2,), IGNORE_INDEX)}
    else:
        batch = padded(random_rows())
        batch["labels"][:] = IGNORE_INDEX
    out = target_logits(model, batch)
    loss = out.token_mean(-out.log_probs) + out.sequence_mean(out.sequence_log_probs)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())


@pytest.mark.filterwarnings("error")
def test_no_warning_is_raised():
    out = target_logits(tiny_llama(), padded(random_rows()))
    out.split({"forget": 1, "retain": 3})
    target_statistics(out.logits, out.targets, SAMPLING)


def test_scored_positions_are_shifted():
    labels = torch.tensor([[7, -100, 8, 9], [-100, -100, -100, -100]])
    assert scored_positions(labels).tolist() == [[False, True, True], [False] * 3]
    assert scored_positions(torch.tensor([3, -100])).tolist() == [[True], [False]]


# --- TargetLogits ---


def some_targets(n_rows=4, lengths=(3, 0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.repeat_interleave(torch.arange(n_rows), torch.tensor(lengths))
    logits = torch.randn(len(rows), 11, dtype=torch.float64, generator=generator)
    return TargetLogits(logits, torch.randint(11, (len(rows),), generator=generator), rows, n_rows)


def test_sums_and_means_are_those_of_a_loop():
    out = some_targets()
    lp = [math.log(math.exp(z[y]) / sum(math.exp(v) for v in z)) for z, y in zip(out.logits, out.targets, strict=True)]
    torch.testing.assert_close(out.log_probs, torch.tensor(lp, dtype=torch.float64), **EXACT)
    sums = [sum(lp[:3]), 0.0, lp[3], sum(lp[4:])]
    torch.testing.assert_close(out.sequence_log_probs, torch.tensor(sums, dtype=torch.float64), **EXACT)
    assert out.token_mean(out.log_probs).item() == pytest.approx(sum(lp) / 6, rel=1e-12)
    assert out.sequence_mean(out.sequence_log_probs).item() == pytest.approx(sum(sums) / 4, rel=1e-12)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_means_divide_by_the_counts_of_the_whole_step(as_tensor):
    counts = (12.0, 0.5)  # half an example a process: a fraction is right as it is
    out = some_targets()
    out.counts = tuple(map(torch.tensor, counts)) if as_tensor else counts
    values, per_row = torch.arange(6.0), torch.arange(4.0)
    assert out.token_mean(values) == 15 / 12
    assert out.sequence_mean(per_row) == 6 / 0.5
    out.counts = (torch.tensor(0), torch.tensor(0)) if as_tensor else (0, 0)
    assert out.token_mean(values * 0) == 0
    assert out.sequence_mean(per_row * 0) == 0


def test_accumulated_micro_batches_equal_one_batch():
    whole = some_targets()
    parts = whole.split({"first": 3, "second": 1}).values()
    total_tokens = total_rows = 0.0
    for part in parts:
        part.counts = (6, 4)
        total_tokens += part.token_mean(part.log_probs)
        total_rows += part.sequence_mean(part.sequence_log_probs**2)
    torch.testing.assert_close(total_tokens, whole.token_mean(whole.log_probs), **EXACT)
    torch.testing.assert_close(total_rows, whole.sequence_mean(whole.sequence_log_probs**2), **EXACT)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_split_of_any_parts(parts):
    """Parts of `n` examples whose lengths are known, empty parts and empty examples among them."""
    lengths = [[length] * n for n, length in parts]
    flat = [length for part in lengths for length in part]
    rows = torch.repeat_interleave(torch.arange(len(flat)), torch.tensor(flat, dtype=torch.int64))
    logits = torch.arange(len(rows) * 2, dtype=torch.float64).view(-1, 2)
    out = TargetLogits(logits, torch.zeros(len(rows), dtype=torch.int64), rows, len(flat))
    found = out.split({str(i): len(part) for i, part in enumerate(lengths)})
    assert [part.lengths.tolist() for part in found.values()] == lengths
    torch.testing.assert_close(torch.cat([part.logits for part in found.values()]), logits)


def test_split_of_a_fused_batch_equals_separate_batches(model):
    forget, retain = random_rows(0), random_rows(1, ((2, 3), (4, 0), (1, 6)))
    fused = target_logits(model, padded(forget + retain)).split({"forget": 4, "retain": 3})
    for name, rows in (("forget", forget), ("retain", retain)):
        alone = target_logits(model, padded(rows))
        torch.testing.assert_close(fused[name].logits, alone.logits, **EXACT)
        torch.testing.assert_close(fused[name].sequence_log_probs, alone.sequence_log_probs, **EXACT)
        assert fused[name].rows.tolist() == alone.rows.tolist()
        assert fused[name].n_rows == len(rows)


def test_split_keeps_gradients_apart():
    out = some_targets()
    out.logits.requires_grad_()
    out.split({"forget": 2, "retain": 2})["retain"].log_probs.sum().backward()
    assert out.logits.grad[:3].abs().max() == 0
    assert out.logits.grad[3:].abs().min() > 0


# --- target_statistics ---


def naive(z, y):
    """One row at a time, with Python floats."""
    z = z.tolist()
    top = max(z)
    log_total = top + math.log(sum(math.exp(v - top) for v in z))
    pairs = [(math.exp(v - log_total), v - log_total) for v in z if v > -math.inf]
    mean = sum(p * lp for p, lp in pairs)
    ordered = sorted(z, reverse=True)
    return {
        "log_prob": z[y] - log_total,
        "hit": z.index(top) == y,
        "rank": sum(v > z[y] for v in z),
        "mean": mean,
        "std": math.sqrt(sum(p * (lp - mean) ** 2 for p, lp in pairs)),
        "margin": ordered[0] - ordered[1],
    }


def hard_logits(seed=0, n=60, v=37):
    """Random rows; flat, nearly deterministic, tied and partly forbidden ones among them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, v, dtype=torch.float64, generator=generator) * 3
    z[0] = 0.0
    z[1, 4] = 60.0
    z[2:12] = z[2:12].round()
    z[12:20, ::3] = -torch.inf
    z[20] = -torch.inf
    z[20, [3, 5]] = 1.0
    y = torch.randint(v, (n,), generator=generator)
    y[:2], y[20] = torch.tensor([0, 4]), 5
    y[30:45] = z[30:45].argmax(-1)
    return z, y


def test_statistics_are_those_of_a_naive_loop():
    z, y = hard_logits()
    found = target_statistics(z, y)
    for i in range(len(z)):
        for name, value in naive(z[i], int(y[i])).items():
            assert getattr(found, name)[i].item() == pytest.approx(value, rel=1e-12, abs=1e-12), (i, name)


def test_forbidden_tokens_give_no_nan():
    z, y = hard_logits()
    z[12:20] = z[12:20].index_fill(1, torch.tensor([0]), -torch.inf)
    y[12:20] = 0  # forbidden targets as well
    found = target_statistics(z, y, SAMPLING)
    for values in (*[getattr(found, n) for n in ("log_prob", "mean", "std", "margin")], *found.sampled.values()):
        assert not values.isnan().any()
    assert (found.log_prob[12:20] == -torch.inf).all()
    assert not found.hit[12:20].any()
    assert found.std.isfinite().all() and found.mean.isfinite().all()


def test_the_first_index_wins_a_tie():
    z = torch.tensor([[1.0, 5.0, 5.0, 0.0]]).expand(4, 4)
    found = target_statistics(z, torch.arange(4))
    assert found.hit.tolist() == [False, True, False, False]
    assert found.rank.tolist() == [2, 0, 0, 3]
    assert found.margin.tolist() == [0.0] * 4


def test_float32_holds_up_for_nearly_deterministic_tokens():
    z, y = hard_logits()
    exact, found = target_statistics(z, y), target_statistics(z.float(), y)
    torch.testing.assert_close(found.std.double(), exact.std, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean.double(), exact.mean, rtol=1e-5, atol=1e-6)


def test_half_precision_is_reduced_in_float32():
    z, y = hard_logits()
    z = z.to(torch.bfloat16)
    found, expected = target_statistics(z, y, SAMPLING), target_statistics(z.float(), y, SAMPLING)
    assert found.log_prob.dtype == torch.float32
    torch.testing.assert_close(found.log_prob, expected.log_prob)
    torch.testing.assert_close(found.std, expected.std)


@pytest.mark.parametrize("scheme", SAMPLING, ids=lambda s: s.key)
def test_sampled_log_probs_are_those_of_the_warpers_of_transformers(scheme):
    z, y = hard_logits()
    y[50:] = z[50:].topk(3).indices[:, 2]
    warped = z
    if scheme.temperature != 1:
        warped = TemperatureLogitsWarper(scheme.temperature)(None, warped)
    if scheme.top_k:
        warped = TopKLogitsWarper(scheme.top_k)(None, warped)
    if scheme.top_p < 1:
        # Among tied tokens at the border of the nucleus a sort decides, and no sort promises which.
        z = warped = z + torch.linspace(0, 1e-7, z.shape[1], dtype=z.dtype)
        warped = TemperatureLogitsWarper(scheme.temperature)(None, warped)
        warped = TopKLogitsWarper(scheme.top_k)(None, warped) if scheme.top_k else warped
        warped = TopPLogitsWarper(scheme.top_p)(None, warped)
    expected = warped.log_softmax(-1).gather(1, y[:, None])[:, 0]
    found = target_statistics(z, y, [scheme]).sampled[scheme.key]
    torch.testing.assert_close(found, expected, **EXACT)
    assert (scheme.top_k == 0 and scheme.top_p == 1) or found.isinf().any() or scheme.top_k > z.shape[1]


def test_sampled_frequencies_agree_with_the_log_probs():
    """An independent route: draw, and count."""
    z = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]], dtype=torch.float64)
    scheme = Sampling(temperature=0.8, top_k=4, top_p=0.9)
    warped = TopPLogitsWarper(0.9)(None, TopKLogitsWarper(4)(None, TemperatureLogitsWarper(0.8)(None, z)))
    draws = torch.multinomial(warped.softmax(-1)[0], 20_000, True, generator=torch.Generator().manual_seed(0))
    frequency = torch.bincount(draws, minlength=5) / 20_000
    found = target_statistics(z.expand(5, 5), torch.arange(5), [scheme]).sampled[scheme.key].exp()
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    assert (found - frequency).abs().max() < 4 * math.sqrt(0.25 / 20_000)


@pytest.mark.parametrize("max_elements", [1, 37, 100, 37 * 60, 10**9])
def test_chunks_change_nothing(max_elements, monkeypatch):
    z, y = hard_logits()
    monkeypatch.setattr("hf_unlearn.models.likelihood.CHUNK_ON_CPU", 2**24)
    expected = target_statistics(z, y, SAMPLING)
    monkeypatch.setattr("hf_unlearn.models.likelihood.CHUNK_ON_CPU", max_elements)
    found = target_statistics(z, y, SAMPLING)
    for name in ("log_prob", "hit", "rank", "mean", "std", "margin"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.sampled.keys() == expected.sampled.keys() == {s.key for s in SAMPLING}
    for key in expected.sampled:
        assert torch.equal(found.sampled[key], expected.sampled[key])


def test_no_targets_and_one_class():
    empty = target_statistics(torch.zeros(0, 7), torch.zeros(0, dtype=torch.int64), SAMPLING)
    assert all(len(getattr(empty, name)) == 0 for name in ("log_prob", "hit", "rank", "mean", "std", "margin"))
    assert all(len(values) == 0 for values in empty.sampled.values())
    sure = target_statistics(torch.full((2, 1), 3.0), torch.zeros(2, dtype=torch.int64), SAMPLING)
    assert sure.log_prob.tolist() == sure.std.tolist() == [0.0, 0.0]
    assert sure.hit.all()


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_hits_say_what_greedy_decoding_reproduces(build):
    model = build().double()
    prompt = torch.tensor([[BOS, 40, 50, 60]])
    greedy = model.generate(prompt, do_sample=False, max_new_tokens=12, min_new_tokens=12, eos_token_id=None)[0]
    spoiled = greedy.clone()
    spoiled[9] = (spoiled[9] + 1) % 320
    for ids, first_miss in ((greedy, None), (spoiled, 5)):
        row = {"input_ids": ids.tolist(), "labels": [IGNORE_INDEX] * 4 + ids[4:].tolist()}
        out = target_logits(model, padded([row], "left", extra=3))
        hit = target_statistics(out.logits, out.targets).hit.tolist()
        assert (hit.index(False) if False in hit else None) == first_miss


def test_any_object_with_the_fields_of_a_scheme_will_do():
    z, y = hard_logits()
    scheme = SimpleNamespace(temperature=2.0, top_k=0, top_p=1.0, key="mine")
    torch.testing.assert_close(
        target_statistics(z, y, [scheme]).sampled["mine"], target_statistics(z / 2, y).log_prob, **EXACT
    )


@pytest.mark.parametrize("scheme", [Sampling(top_p=0.8), Sampling(temperature=1.7, top_k=12, top_p=0.6)])
def test_the_nucleus_is_the_smallest_set_of_likely_tokens_with_that_mass(scheme):
    rng = np.random.default_rng(0)
    z = rng.normal(scale=3, size=(40, 50))
    targets = rng.integers(50, size=40)
    expected = []
    for row, target in zip(z / scheme.temperature, targets, strict=True):
        kept = np.argsort(-row)[: scheme.top_k or None]
        p = np.exp(row[kept]) / np.exp(row[kept]).sum()
        # A token is kept as long as those before it do not have the mass yet.
        kept = kept[np.cumsum(p) - p < scheme.top_p]
        total = np.exp(row[kept]).sum()
        expected.append(row[target] - np.log(total) if target in kept else -np.inf)
    found = target_statistics(torch.from_numpy(z), torch.from_numpy(targets), [scheme]).sampled[scheme.key]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)
