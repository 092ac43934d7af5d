"""The diagonal of the Fisher information, against gradients of single rows."""

import pytest
import torch
from cases import image_rows, make_trainer, text_rows
from tiny import tiny_llama, tiny_tokenizer

from hf_unlearn.curvature.importance import squared_gradients
from hf_unlearn.data import UnlearningCollator, encode_dataset


def encoded(n):
    return encode_dataset(text_rows(n), tiny_tokenizer())


def batches(rows, size):
    return [UnlearningCollator(0)(list(rows[i : i + size])) for i in range(0, len(rows), size)]


def names(model):
    return [name for name, _ in model.named_parameters()]


def loss_of_row(model, row):
    """-ln p(answer) of one row, from its logits."""
    if "pixel_values" in row:
        return -model(pixel_values=row["pixel_values"][None]).logits[0].log_softmax(-1)[row["labels"]]
    ids, labels = torch.as_tensor(row["input_ids"]), torch.as_tensor(row["labels"])
    log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return -sum(log_p[i - 1, labels[i]] for i in range(1, len(ids)) if labels[i] != -100)


def looped(model, rows):
    model.eval()
    total = {name: 0.0 for name in names(model)}
    for row in rows:
        gradients = torch.autograd.grad(loss_of_row(model, row), list(model.parameters()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] = total[name] + gradient**2 / len(rows)
    return total


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("model", ["llama", "gpt2", "vit"])
def test_mean_of_squares_of_single_gradients(model, size, tmp_path):
    rows = image_rows(5) if model == "vit" else encoded(5)
    model = make_trainer("graddiff", tmp_path, model=model).model
    expected = looped(model, rows)
    found = squared_gradients(model, batches(rows, size), names(model))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == torch.float64 and not value.requires_grad
        torch.testing.assert_close(value, expected[name], rtol=1e-8, atol=1e-14)
    assert all(p.grad is None for p in model.parameters())


def test_it_is_not_the_square_of_the_gradient_of_a_batch():
    model, rows = tiny_llama().double(), encoded(5)
    found = squared_gradients(model, batches(rows, 5), ["lm_head.weight"])["lm_head.weight"]
    mean = sum(loss_of_row(model, row) for row in rows) / 5
    (gradient,) = torch.autograd.grad(mean, [model.lm_head.weight])
    # E[g^2] - E[g]^2 is a variance.
    assert (found - gradient**2).min() >= -1e-12
    assert found.sum() > 1.05 * (gradient**2).sum()


def test_the_side_of_the_padding_is_irrelevant():
    model, rows = tiny_llama().double(), encoded(6)
    right = batches(rows, 6)[0]
    shift = (right["attention_mask"] == 0).sum(-1)
    left = {
        key: torch.stack([v.roll(int(n)) for v, n in zip(value, shift, strict=True)]) for key, value in right.items()
    }
    assert shift.max() > 0 and left["attention_mask"][:, -1].all()
    a, b = (squared_gradients(model, [batch], names(model)) for batch in (left, right))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-10, atol=1e-15)


def test_parameters_that_are_not_asked_for_and_dropout():
    model = tiny_llama(attention_dropout=0.5).double().train()
    rows = encoded(3)
    found = squared_gradients(model, batches(rows, 3), ["model.norm.weight"])
    assert list(found) == ["model.norm.weight"] and model.training
    torch.testing.assert_close(found["model.norm.weight"], looped(model, rows)["model.norm.weight"])


def test_half_precision_adds_up_in_float32():
    model, rows = tiny_llama().bfloat16(), encoded(3)
    found = squared_gradients(model, batches(rows, 3), ["model.norm.weight"])["model.norm.weight"]
    expected = looped(tiny_llama(), rows)["model.norm.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.3, atol=0.3 * expected.max().item())
