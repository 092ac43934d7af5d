"""Attacks on the weights reach experts, convolutions and state space models, matrix by matrix, and say how far they got."""

import json

import numpy as np
import pytest
import torch
from bitsandbytes import functional
from cases import text_rows
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from tiny_weights import ALL, CONVOLUTIONS, EXPERTS, gpt_oss, mixtral
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_unlearn.audit import AuditConfig, audit, score
from hf_unlearn.audit.attacks.perturbation import noised, pruned
from hf_unlearn.audit.attacks.quantization import WEIGHT_ATTACKS, quantized
from hf_unlearn.audit.attacks.relearning import _with_adapter
from hf_unlearn.audit.attacks.table import obstacles
from hf_unlearn.evidence.result import write_result
from hf_unlearn.models.weights import share_changed


LEFT = ("norm", "bias", "embed_tokens", "embeddings", "embedder", "lm_head", "classifier", "A_log", ".D", "sinks")
IMAGE = {"pixel_values": torch.linspace(-1, 1, 3 * 256).view(3, 16, 16), "labels": 2}
TEXT = {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " Ada lives in Paris."}


def matrices(model):
    """Names of the parameters that are to change, by a route of its own: two axes, and none of these names."""
    return {n: p for n, p in model.named_parameters() if p.dim() > 1 and not any(part in n for part in LEFT)}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("name", WEIGHT_ATTACKS)
def test_every_matrix_changes_and_nothing_else(kind, name):
    model = ALL[kind]()
    start = {n: p.clone() for n, p in model.named_parameters()}
    attacked = WEIGHT_ATTACKS[name](model)
    after = dict(attacked.named_parameters())
    changed = {n for n, p in start.items() if p.dtype != after[n].dtype or not torch.equal(p, after[n])}
    assert changed == set(matrices(model))
    assert share_changed(model, attacked) == 1
    assert all(torch.equal(p, start[n]) for n, p in model.named_parameters())
    is_image = kind in CONVOLUTIONS
    rows, tokenizer = ([IMAGE], None) if is_image else ([TEXT], tiny_tokenizer())
    found, before = (score(m, tokenizer, rows, sampling=()) for m in (attacked, model))
    seen = "class_log_probs" if is_image else "log_prob"
    assert found.valid.all() and not np.array_equal(getattr(found, seen), getattr(before, seen))


@pytest.mark.parametrize(("kind", "transposed"), [("mixtral", False), ("gpt_oss", True), ("llama4", True)])
def test_experts_are_rounded_one_by_one_along_their_inputs(kind, transposed):
    model = ALL[kind]()
    fused = {n: p.detach() for n, p in model.named_parameters() if n.endswith(("gate_up_proj", "down_proj"))}
    assert len(fused) == 4
    found = {s: dict(quantized(model, s).named_parameters()) for s in ("int4-rtn", "int8", "nf4")}
    for name, stack in fused.items():
        for i, stored in enumerate(stack):
            ours = {s: part[name].detach()[i] for s, part in found.items()}
            weight, ours = (stored.T, {s: w.T for s, w in ours.items()}) if transposed else (stored, ours)
            low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
            step = (high - low) / 15
            zero = (-low / step).round()
            levels = ((weight / step).round() + zero).clamp(0, 15) - zero
            torch.testing.assert_close(ours["int4-rtn"], levels * step)
            codes, scale, _ = functional.int8_vectorwise_quant(weight.to(torch.float16).contiguous())
            by_bitsandbytes = codes.float() * scale[:, None] / 127
            torch.testing.assert_close(ours["int8"], by_bitsandbytes, rtol=2e-3, atol=float(scale.max()) / 127)
            exact = (
                (weight / (weight.abs().amax(1, keepdim=True) / 127)).round()
                * weight.abs().amax(1, keepdim=True)
                / 127
            )
            torch.testing.assert_close(ours["int8"], exact)
            packed = functional.quantize_4bit(weight.contiguous(), quant_type="nf4")
            assert torch.equal(ours["nf4"], functional.dequantize_4bit(*packed))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "resnet", "mamba"])
@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_pruning_takes_the_smallest_of_all_matrices_together(kind, fraction):
    model = ALL[kind]()
    entries = torch.cat([p.detach().flatten() for p in matrices(model).values()])
    after = dict(pruned(model, fraction).named_parameters())
    found = torch.cat([after[n].detach().flatten() for n in matrices(model)])
    n = round(fraction * len(entries))
    assert int((found == 0).sum()) - int((entries == 0).sum()) == n
    expected = torch.where(entries.abs() <= entries.abs().sort().values[n - 1], 0, entries)
    assert torch.equal(found, expected)


def test_the_noise_of_an_expert_is_relative_to_its_own_weights():
    model = mixtral()
    with torch.no_grad():
        for i in range(4):
            model.model.layers[0].mlp.experts.gate_up_proj[i] *= 10.0**-i
    before = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    after = noised(model, 0.1).model.layers[0].mlp.experts.gate_up_proj.detach()
    for old, new in zip(before, after, strict=True):
        assert (new - old).std() == pytest.approx(0.1 * float(old.std()), rel=0.05)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_vit])
def test_the_noise_of_linear_layers_is_drawn_in_their_order(make):
    model, generator = make(), torch.Generator().manual_seed(0)
    after = dict(noised(model, 0.1).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and name not in ("lm_head", "classifier"):
            noise = torch.randn(module.weight.shape, generator=generator)
            assert torch.equal(after[name].weight, module.weight + 0.1 * module.weight.std() * noise)


@pytest.mark.parametrize("kind", EXPERTS)
def test_what_is_known_of_experts_from_the_architecture_alone(kind):
    with torch.device("meta"):
        model = EXPERTS[kind]()
    assert "weight_attacks" not in obstacles(model, "text", ["latent"])


def run(models, **options):
    rows = text_rows(24)
    sets = {
        "forget": rows.select(range(8)),
        "retain": rows.select(range(8, 16)),
        "holdout": rows.select(range(16, 24)),
    }
    config = AuditConfig(max_rows=8, weight_attacks=("int8", "pruned 30%"), stability=False)
    unlearned, retrained = models
    return audit(
        unlearned,
        retrained=retrained,
        split=sets,
        threat_model="latent",
        processing_class=tiny_tokenizer(),
        config=config,
    )


@pytest.mark.filterwarnings("ignore")
def test_the_report_says_what_share_of_the_weights_was_changed(tmp_path):
    report = run([gpt_oss(0), gpt_oss(1)])
    assert report.coverage["weights"] == {"int8": 1.0, "pruned 30%": 1.0}
    assert "quantised" not in {a["surface"] for a in report.not_run}
    write_result(tmp_path, report.as_dict(), {})
    assert json.loads((tmp_path / "result.json").read_text())["audit"]["coverage"]["weights"]["int8"] == 1.0
    assert "int8 100 %, pruned 30% 100 %" in (tmp_path / "RESULT.md").read_text()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qwen2_moe", "gpt_oss", "llama4"])
def test_an_adapter_relearns_with_the_experts_too(kind):
    model = ALL[kind]()
    adapted = _with_adapter(model, 0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    start = {n: p.clone() for n, p in ALL[kind]().named_parameters()}
    merged = dict(adapted.merge_and_unload().named_parameters())
    routers = {n for n in matrices(model) if n.endswith(("mlp.gate.weight", "router.weight"))}
    changed = {n for n, p in start.items() if not torch.equal(p, merged[n])}
    assert changed - routers == set(matrices(model)) - routers and len(changed) >= 10


class Packed(nn.Module):
    """A layer of another library that keeps its weights as 8-bit codes."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        self.scale = float(weight.abs().max()) / 127
        self.codes = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scale)


def packed(seed):
    model = tiny_llama(seed=seed)
    for layer in model.model.layers:
        layer.mlp.up_proj, layer.mlp.down_proj = Packed(layer.mlp.up_proj), Packed(layer.mlp.down_proj)
    return model


@pytest.mark.filterwarnings("ignore")
def test_a_surface_most_of_whose_weights_stayed_is_not_tested():
    share = 1 - 2 * 2 * 64 * 32 / sum(p.numel() for p in matrices(packed(0)).values())
    with torch.device("meta"):
        reason = obstacles(tiny_llama(), "text", ["latent"])
        assert "weight_attacks" not in reason
    reason = obstacles(packed(0), "text", ["latent"])["weight_attacks"]
    assert f"can change {share:.1%} of the weights only" in reason and "Load the model with plain weights" in reason
    report = run([packed(0), packed(1)])
    assert {a["reason"] for a in report.not_run if a["attack"] == "weight_attacks"} == {reason}
    assert report.verdict("quantised") == "not_tested" and report.exit_code in (1, 3)
    assert f"{share:.1%} of the weights only" in str(report)


@pytest.mark.filterwarnings("ignore")
def test_the_share_is_measured_from_the_outcome(monkeypatch):
    """An attack that leaves a part of the weights, whatever it says of itself."""

    def careless(model):
        attacked = noised(model, 0.1)
        with torch.no_grad():
            for layer, before in zip(attacked.model.layers, model.model.layers, strict=True):
                layer.mlp.experts.gate_up_proj[1:].copy_(before.mlp.experts.gate_up_proj[1:])
        return attacked

    monkeypatch.setitem(WEIGHT_ATTACKS, "pruned 30%", careless)
    report = run([mixtral(0), mixtral(1)])
    total = sum(p.numel() for p in matrices(mixtral()).values())
    share = 1 - 2 * 3 * 96 * 32 / total
    assert report.coverage["weights"]["int8"] == 1.0
    assert report.coverage["weights"]["pruned 30%"] == pytest.approx(share)
    reasons = [a["reason"] for a in report.not_run if a["surface"] == "quantised"]
    assert reasons and all(f"pruned 30% can change {share:.1%} of the weights only" in r for r in reasons)
    assert report.verdict("quantised") in ("not_tested", "residual", "over_forgotten")
    assert "extraction_strength_pruned 30%" in {row["measure"] for row in report.rows}
