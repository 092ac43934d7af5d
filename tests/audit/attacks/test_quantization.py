"""Quantized copies against transformers' own bitsandbytes models, bit for bit, and rounding against a plain loop."""

import logging

import numpy as np
import pytest
import torch
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, BitsAndBytesConfig

from hf_unlearn.audit import score
from hf_unlearn.audit.attacks.quantization import SCHEMES, WEIGHT_ATTACKS, quantized, round_to_nearest
from hf_unlearn.models.weights import weight_matrices


CONFIGS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}
MODELS = {"llama": tiny_llama, "gpt2": tiny_gpt2, "vit": tiny_vit}
ROWS = [
    {"prompt": "Question: Where does Ada live?\nAnswer:", "completion": " Ada lives in Paris."},
    {"prompt": "Question: Who wrote it?\nAnswer:", "completion": " Boris."},
    "The author of the book is Boris.",
]


def inputs_of(name):
    generator = torch.Generator().manual_seed(0)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(5, 300, (3, 12), generator=generator)}


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_copy_computes_what_the_reloaded_model_does(name, scheme, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForCausalLM
    # transformers keeps the head of a language model, and quantizes that of a classifier unless told not to.
    skip = {"llm_int8_skip_modules": ["classifier"]} if name == "vit" else {}
    config = BitsAndBytesConfig(**CONFIGS[scheme], **skip)
    reference = auto.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    for module in reference.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # a faster kernel in 16 bit, on some processors only
            module.support_avx512bf16_for_cpu = False
    before = state(model)
    with torch.no_grad():
        plain, expected, found = (m(**inputs_of(name)).logits for m in (model, reference, quantized(model, scheme)))
    assert torch.equal(found, expected)
    assert 1e-3 < (found - plain).abs().max() < 10
    assert all(torch.equal(value, before[path]) for path, value in model.state_dict().items())


def test_4_bit_weights_are_those_that_dequantize_gives(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**CONFIGS["nf4"])
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    dequantized, ours = state(reference.dequantize()), quantized(model, "nf4").state_dict()
    assert ours.keys() == dequantized.keys()
    for path, value in ours.items():
        assert torch.equal(value, dequantized[path].to(value.dtype)), path
    assert all(len(block.unique()) <= 16 for block in ours["model.layers.0.mlp.up_proj.weight"].flatten().split(64))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("make", [lambda: tiny_llama().bfloat16(), lambda: tiny_gpt2().double(), tiny_llama])
def test_it_is_scored_like_any_model(make, scheme):
    model, tokenizer = make(), tiny_tokenizer()
    changed = quantized(model, scheme)
    assert changed.dtype == model.dtype and not changed.training
    before, after = (score(m, tokenizer, ROWS, batch_size=2, sampling=()) for m in (model, changed))
    assert after.valid.all() and after.same_targets(before)
    assert 1e-4 < np.abs(after.log_prob - before.log_prob).max() < 8
    again = score(quantized(model, scheme), tokenizer, ROWS, batch_size=2, sampling=())
    assert np.array_equal(again.log_prob, after.log_prob)


def test_int8_says_nothing_and_leaves_the_logger_as_it_is(caplog):
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    before = (logger.level, list(logger.filters), logger.disabled)
    with caplog.at_level(logging.WARNING):
        logger.addHandler(caplog.handler)
        try:
            score(quantized(tiny_llama(), "int8"), tiny_tokenizer(), ROWS)
            said = [record.getMessage() for record in caplog.records]
            logger.warning("MatMul8bitLt: inputs will be cast by someone else")
        finally:
            logger.removeHandler(caplog.handler)
    assert not said and len(caplog.records) >= 1
    assert before == (logger.level, list(logger.filters), logger.disabled)


def loop(weight):
    """Round a matrix group by group, entry by entry."""
    out = weight.copy()
    for row in out:
        for start in range(0, len(row), 128):
            group = row[start : start + 128]
            low, high = min(0.0, group.min()), max(0.0, group.max())
            if high == low:
                continue
            scale = (high - low) / 15
            zero = np.round(-low / scale)
            for i, value in enumerate(group):
                group[i] = (min(max(np.round(value / scale) + zero, 0), 15) - zero) * scale
    return out


@pytest.mark.parametrize("inputs", [256, 200, 32, 1])
def test_rounding_is_that_of_the_loop(inputs):
    rng = np.random.default_rng(inputs)
    weight = rng.normal(0, 1, (6, inputs))
    weight[0] = 0
    weight[1] = np.abs(weight[1])
    weight[2] = -np.abs(weight[2])
    weight[3] = 0.7
    found = round_to_nearest(torch.tensor(weight)).numpy()
    np.testing.assert_allclose(found, loop(weight), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found[[0, 3]], weight[[0, 3]], rtol=1e-12)
    assert np.abs(found - weight).max() <= (weight.max() - weight.min()) / 15


def test_rounding_is_along_the_inputs_of_either_layout():
    llama, gpt2 = tiny_llama(), tiny_gpt2()
    ours = quantized(llama, "int4-rtn").model.layers[1].mlp.down_proj.weight
    expected = loop(llama.model.layers[1].mlp.down_proj.weight.detach().double().numpy())
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-6)
    ours = quantized(gpt2, "int4-rtn").transformer.h[0].mlp.c_proj.weight.T
    expected = loop(gpt2.transformer.h[0].mlp.c_proj.weight.T.detach().double().numpy())
    np.testing.assert_allclose(ours.detach().numpy(), expected, atol=1e-6)


def test_what_an_edit_hid_within_half_a_step_comes_back():
    original = tiny_llama()
    unlearned = tiny_llama()
    with torch.no_grad():
        for weight in (matrix.parameter for matrix in weight_matrices(unlearned)):
            rounded = round_to_nearest(weight)
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            step = (high - low) / 15
            inside = (rounded + step / 2 < high) & (rounded - step / 2 > low)  # so that the range, and the steps, stay
            edited = rounded + 0.4 * step * (rounded - weight).sign()
            weight.copy_(torch.where(inside, edited, weight))
    tokenizer = tiny_tokenizer()
    of = {
        name: np.array([table.log_prob[table.example(i)].mean() for i in range(len(table))])
        for name, table in {
            "original": score(quantized(original, "int4-rtn"), tokenizer, ROWS, sampling=()),
            "before": score(unlearned, tokenizer, ROWS, sampling=()),
            "attacked": score(quantized(unlearned, "int4-rtn"), tokenizer, ROWS, sampling=()),
        }.items()
    }
    assert np.abs(of["before"] - of["original"]).max() > 0.05
    np.testing.assert_allclose(of["attacked"], of["original"], atol=1e-4)


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(ValueError, match="int8, nf4, int4-rtn"):
        quantized(tiny_llama(), "int4")
    tiny_llama().save_pretrained(tmp_path)
    config = BitsAndBytesConfig(**CONFIGS["nf4"])
    with pytest.raises(ValueError, match="is quantized"):
        quantized(AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config), "nf4")


def test_the_table_of_attacks_has_all():
    assert list(WEIGHT_ATTACKS) == [
        *("int8", "nf4", "int4-rtn", "pruned 10%", "pruned 30%", "pruned 50%", "noise 1%", "noise 10%", "noise 30%")
    ]
    before, text = tiny_vit(), {"pixel_values": torch.ones(3, 16, 16), "labels": 2}
    for name, attack in WEIGHT_ATTACKS.items():
        found = score(attack(before), None, [text], sampling=())
        assert found.valid.all() and found.log_prob[0] != score(before, None, [text], sampling=()).log_prob[0], name
