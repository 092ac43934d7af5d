"""The subspace rule: layers answer the retain set's inputs as before, and the covariance it rests on."""

import pytest
import torch
import torch.nn.functional as F
from cases import image_rows, make_trainer, text_rows, weights
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from hf_unlearn.curvature.covariance import input_covariances
from hf_unlearn.data import UnlearningCollator, encode_dataset
from hf_unlearn.models.weights import weight_matrices
from hf_unlearn.training.constraints import principal_directions


ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 4}


def encoded(n, offset=0):
    return encode_dataset(text_rows(n, offset), tiny_tokenizer())


def batches(rows, size):
    return [UnlearningCollator(0)(list(rows[i : i + size])) for i in range(0, len(rows), size)]


def inputs_row_by_row(model, names, rows):
    """What comes into the layers, from a plain forward of each row without padding: `(tokens, d_in)` each."""
    found = {name: [] for name in names}
    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, args, output, name=name: found[name].append(args[0]))
        for name in names
    ]
    model.eval()
    with torch.no_grad():
        for row in rows:
            if "pixel_values" in row:
                model(pixel_values=row["pixel_values"][None])
            else:
                model(input_ids=torch.as_tensor(row["input_ids"])[None])
    for handle in handles:
        handle.remove()
    return {name: torch.cat([x.flatten(0, -2) for x in xs]) for name, xs in found.items()}


# Directions.


@given(st.integers(1, 6), st.integers(1, 8), st.floats(0.05, 1.0), st.integers(0, 1000))
def test_the_fewest_directions_that_hold_the_energy(d, n, energy, seed):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = principal_directions(x.T @ x, energy)
    k = found.shape[1]
    torch.testing.assert_close(found.T @ found, torch.eye(k, dtype=torch.float64))
    held, total = (x @ found).square().sum().item(), x.square().sum().item()
    assert held >= (energy - 1e-9) * total
    # The best k - 1 directions, from the singular values of the data, do not hold it.
    best = torch.linalg.svdvals(x)[: k - 1].square().sum().item()
    assert best < (energy + 1e-9) * total
    assert held == pytest.approx(torch.linalg.svdvals(x)[:k].square().sum().item(), abs=1e-9)


def test_directions_of_nothing_and_of_all():
    assert principal_directions(torch.zeros(4, 4, dtype=torch.float64), 0.9).shape == (4, 0)
    assert principal_directions(torch.eye(4, dtype=torch.float64), 1.0).shape == (4, 4)
    assert principal_directions(torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]).double()), 0.5).shape == (4, 1)
    assert principal_directions(torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]).double()), 0.51).shape == (4, 2)


# Covariances.


def test_the_covariance_of_a_first_layer_is_that_of_the_hidden_states():
    model = tiny_llama().double()
    rows = encoded(7)
    assert len({len(row["input_ids"]) for row in rows}) > 1  # so that there is padding
    name = "model.layers.1.self_attn.q_proj"
    matrices = weight_matrices(model, [f"{name}.weight"])
    expected = 0.0
    with torch.no_grad():
        for row in rows:
            states = model(input_ids=torch.as_tensor(row["input_ids"])[None], output_hidden_states=True).hidden_states
            x = model.model.layers[1].input_layernorm(states[1])[0]
            expected = expected + torch.einsum("ti,tj->ij", x, x)
    for size in (1, 3, 7):
        torch.testing.assert_close(
            input_covariances(model, matrices, batches(rows, size))[f"{name}.weight"], [expected]
        )
    right = batches(rows, 7)[0]
    shift = (right["attention_mask"] == 0).sum(-1)
    left = {
        key: torch.stack([v.roll(int(n)) for v, n in zip(value, shift, strict=True)]) for key, value in right.items()
    }
    assert left["attention_mask"][:, -1].all() and not left["attention_mask"].all()
    torch.testing.assert_close(input_covariances(model, matrices, [left])[f"{name}.weight"], [expected])


@pytest.mark.parametrize("model", ["llama", "gpt2", "vit"])
def test_covariances_of_all_layers(model, tmp_path):
    rows = image_rows(5) if model == "vit" else encoded(5)
    model = make_trainer("graddiff", tmp_path, model=model).model
    matrices = weight_matrices(model, head=True)
    found = input_covariances(model, matrices, batches(rows, 2))
    assert found.keys() == {matrix.name for matrix in matrices}
    # An output layer sees the scored positions alone, or the first token of an image.
    inner = [matrix.name.removesuffix(".weight") for matrix in weight_matrices(model)]
    assert len(inner) >= 8
    for name, x in inputs_row_by_row(model, inner, rows).items():
        torch.testing.assert_close(found[f"{name}.weight"], [x.T @ x], msg=lambda text, name=name: f"{name}: {text}")


def test_an_input_that_layers_share_is_added_up_once():
    model = tiny_llama().double()
    found = input_covariances(model, weight_matrices(model, head=True), batches(encoded(5), 2))
    for layer in ("model.layers.0", "model.layers.1"):
        q, k, v, o = (found[f"{layer}.self_attn.{name}_proj.weight"][0] for name in "qkvo")
        gate, up = (found[f"{layer}.mlp.{name}_proj.weight"][0] for name in ("gate", "up"))
        assert q is k and q is v and gate is up
        assert q is not o and q is not gate


def test_an_output_layer_sees_the_scored_positions_whatever_their_number():
    """As many scored positions as rows, in batches as long as the layer is wide: nothing to be taken for padding."""
    model = tiny_llama().double()
    ids = torch.randint(5, 300, (3, 32))
    labels = torch.full_like(ids, -100)
    labels[:, 20] = ids[:, 20]
    mask = torch.ones_like(ids)
    mask[0, 25:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    (found,) = input_covariances(model, weight_matrices(model, ["lm_head.weight"], head=True), [batch])[
        "lm_head.weight"
    ]
    with torch.no_grad():
        x = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, 19]
    torch.testing.assert_close(found, x.T @ x)


def test_tied_output_layers_are_left_out():
    model = tiny_gpt2()  # its output layer is the embedding
    names = {matrix.name for matrix in weight_matrices(model, head=True)}
    assert "lm_head.weight" not in names and "transformer.h.0.attn.c_attn.weight" in names
    assert "lm_head.weight" in {matrix.name for matrix in weight_matrices(tiny_llama(), head=True)}


# Runs.


def answer(module, weight, x):
    return x @ weight if isinstance(module, Conv1D) else F.linear(x, weight)


@pytest.mark.parametrize("model", ["llama", "gpt2", "vit"])
def test_layers_answer_protected_inputs_as_before(model, tmp_path):
    trainer = make_trainer("graddiff", tmp_path, model=model, update_rule="subspace", subspace_energy=0.8, **ADAMW)
    network, rows = trainer.model, trainer.train_dataset.retain
    before = weights(network)
    kinds = {type(module) for name, module in network.named_modules() if f"{name}.weight" in trainer.trainable_names}
    assert kinds == {Conv1D if model == "gpt2" else nn.Linear}
    inner = [
        n.removesuffix(".weight") for n in trainer.trainable_names if "lm_head" not in n and "classifier" not in n
    ]
    inputs = inputs_row_by_row(network, inner, rows)
    trainer.train()
    after = weights(network)
    n_moved = 0
    for name in inner:
        module, start, end = network.get_submodule(name), before[f"{name}.weight"], after[f"{name}.weight"]
        _, values, directions = torch.linalg.svd(inputs[name], full_matrices=False)
        share = values.square().cumsum(0) / values.square().sum()
        k = int((share < 0.8).sum()) + 1
        x = torch.randn(5, k, dtype=torch.float64) @ directions[:k]
        torch.testing.assert_close(answer(module, end, x), answer(module, start, x), rtol=1e-7, atol=1e-8)
        if k < len(directions):
            n_moved += 1
            other = directions[k:].sum(0, keepdim=True)
            assert (answer(module, end, other) - answer(module, start, other)).abs().max() > 1e-3
    assert n_moved >= len(inner) / 2
    # Biases, norms and embeddings stay, decay or not.
    for name, value in before.items():
        if name not in trainer.trainable_names:
            assert torch.equal(value, after[name]), name


def test_resuming_finds_the_same_directions(tmp_path):
    arguments = ADAMW | {"update_rule": "subspace", "subspace_energy": 0.8}
    through = make_trainer("graddiff", tmp_path / "a", save_strategy="steps", save_steps=2, **arguments)
    through.train()
    resumed = make_trainer("graddiff", tmp_path / "b", **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in weights(through.model).items():
        assert torch.equal(value, weights(resumed.model)[name]), name


def test_layers_that_cannot_move_are_named(tmp_path, caplog):
    logging.enable_propagation()
    try:
        trainer = make_trainer(
            "graddiff", tmp_path, update_rule="subspace", subspace_energy=1.0, trainable=r".*layers.*q_proj.*"
        )
        before = weights(trainer.model)
        trainer.train()
    finally:
        logging.disable_propagation()
    assert "every input direction of 2 of 2 weight matrices" in caplog.text and "Lower subspace_energy" in caplog.text
    for name, value in before.items():
        torch.testing.assert_close(trainer.model.get_parameter(name).detach(), value, rtol=1e-9, atol=1e-12)


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(ValueError, match="with an adapter"):
        make_trainer(
            "graddiff", tmp_path, update_rule="subspace", peft_config=LoraConfig(r=2, target_modules="all-linear")
        )
    with pytest.raises(ValueError, match="works on weight matrices, but none that it reaches may move"):
        make_trainer("graddiff", tmp_path, update_rule="subspace", trainable=".*norm.*")
    with pytest.raises(ValueError, match="subspace_energy"):
        make_trainer("graddiff", tmp_path, update_rule="subspace", subspace_energy=1.5)
