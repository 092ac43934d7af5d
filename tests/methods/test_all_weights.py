"""Edits and settings reach the experts of a mixture and the kernels of convolutions, or say that they do not."""

import re

import pytest
import torch
import torch.nn.functional as F
from cases import make_trainer, text_rows, weights
from peft import LoraConfig
from tiny import tiny_llama, tiny_tokenizer
from tiny_weights import CONVOLUTIONS, EXPERTS, gpt_oss, in_double, llama4, mamba, mixtral, qwen2_moe, resnet
from transformers.utils import logging

from hf_unlearn.curvature.covariance import input_covariances
from hf_unlearn.data import encode_dataset
from hf_unlearn.methods import METHODS
from hf_unlearn.methods.svd_forget import removal, soft_projection
from hf_unlearn.models.likelihood import target_logits
from hf_unlearn.models.projections import second_projections
from hf_unlearn.models.weights import weight_matrices
from hf_unlearn.training.checks import require_architecture


FUSED = ("gate_up_proj", "down_proj")  # of the experts
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 3}


@pytest.fixture
def said(caplog):
    logging.enable_propagation()
    yield caplog
    logging.disable_propagation()


def moved(before, model):
    after = weights(model)
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def routed(model, layer, rows):
    """The tokens of each expert, row by row without padding, by a hook on the router: `(tokens, width)` each."""
    block, seen = model.model.layers[layer].mlp, [[] for _ in range(4)]

    def keep(module, args):
        for i in range(4):
            seen[i].append(args[0][(args[1] == i).any(-1)])

    with block.experts.register_forward_pre_hook(keep), torch.no_grad():
        for row in rows:
            model(input_ids=torch.as_tensor(row["input_ids"])[None])
    return [torch.cat(part) for part in seen]


def between(model, layer, inputs):
    experts, found = model.model.layers[layer].mlp.experts, []
    for i, x in enumerate(inputs):
        if hasattr(experts, "gate_up_proj_bias"):  # GPT-OSS
            gate, up = (x @ experts.gate_up_proj[i] + experts.gate_up_proj_bias[i]).unflatten(-1, (-1, 2)).unbind(-1)
            gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
            found.append((up + 1) * gate * torch.sigmoid(gate * experts.alpha))
        else:
            gate, up = (x @ experts.gate_up_proj[i].T).chunk(2, -1)
            found.append(F.silu(gate) * up)
    return [x.detach() for x in found]


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_covariances_of_experts_are_those_of_the_tokens_routed_to_them(make, tmp_path):
    model = in_double(make())
    rows = encode_dataset(text_rows(5), tiny_tokenizer())
    trainer = make_trainer("graddiff", tmp_path, model, forget=5)
    matrices = weight_matrices(model)
    found = input_covariances(model, matrices, trainer.batches(trainer.train_dataset.forget))
    assert found.keys() == {matrix.name for matrix in matrices}
    for layer in (0, 1):
        inputs = routed(model.eval(), layer, rows)
        for name, parts in zip(FUSED, (inputs, between(model, layer, inputs)), strict=True):
            covariances = found[f"model.layers.{layer}.mlp.experts.{name}"]
            torch.testing.assert_close(covariances, [x.T @ x for x in parts])


@pytest.mark.parametrize("make", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_covariances_of_kernels_give_the_energy_of_the_outputs(make, tmp_path):
    """`sum of (w . patch)^2 = w^T C w`, whatever the stride and the groups: the outputs of the layer without its bias."""
    model = make().double()
    trainer = make_trainer("graddiff", tmp_path, model, forget=5)
    matrices = [m for m in weight_matrices(model) if isinstance(m.module, torch.nn.Conv2d)]
    energies = {}

    def keep(name):
        def add(module, args, output):
            plain = output if module.bias is None else output - module.bias[:, None, None]
            energies[name] = energies.get(name, 0) + plain.square().sum((0, 2, 3))

        return add

    hooks = [m.module.register_forward_hook(keep(m.name)) for m in matrices]
    found = input_covariances(model, matrices, trainer.batches(trainer.train_dataset.forget))
    for hook in hooks:
        hook.remove()
    assert len(matrices) >= 3
    for matrix in matrices:
        parts = zip(matrix.by_input(), found[matrix.name], strict=True)
        energy = torch.cat([torch.einsum("oi,ij,oj->o", w, c, w) for w, c in parts])
        torch.testing.assert_close(energy, energies[matrix.name].detach())


@pytest.mark.parametrize("kind", EXPERTS | CONVOLUTIONS)
def test_svd_forget_changes_every_matrix(kind, tmp_path):
    model = in_double((EXPERTS | CONVOLUTIONS)[kind]())
    before = weights(model)
    trainer = make_trainer("svd_forget", tmp_path, model, retain=3, retain_alpha=2.0)
    trainer.train()
    assert moved(before, trainer.model) == {matrix.name for matrix in weight_matrices(model, head=True)}


def test_svd_forget_of_an_expert_is_the_formula_on_its_own_tokens(tmp_path):
    model, start = in_double(mixtral()), in_double(mixtral())
    trainer = make_trainer("svd_forget", tmp_path, model, forget=6, retain=4, retain_alpha=30.0, forget_alpha=3.0)
    trainer.train()
    forget, retain = (
        routed(start, 0, encode_dataset(text_rows(n, offset), tiny_tokenizer())) for n, offset in ((6, 0), (4, 100))
    )
    old, new = (m.model.layers[0].mlp.experts.gate_up_proj.detach() for m in (start, trainer.model))
    for i in range(4):
        p_f, p_r = soft_projection(forget[i].T @ forget[i], 3.0), soft_projection(retain[i].T @ retain[i], 30.0)
        torch.testing.assert_close(new[i], old[i] @ removal(p_f, p_r, "reference"), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_experts_answer_protected_inputs_as_before(make, tmp_path):
    model = in_double(make())
    before = weights(model)
    rows = encode_dataset(text_rows(20, 100), tiny_tokenizer())
    inputs = routed(model, 1, rows)
    trainer = make_trainer("graddiff", tmp_path, model, update_rule="subspace", subspace_energy=0.8, **ADAMW)
    trainer.train()
    name = "model.layers.1.mlp.experts.gate_up_proj"
    old, new = before[name], weights(trainer.model)[name]
    if make is gpt_oss:
        old, new = old.mT, new.mT
    for i, x in enumerate(inputs):
        _, values, directions = torch.linalg.svd(x, full_matrices=False)
        k = int((values.square().cumsum(0) / values.square().sum() < 0.8).sum()) + 1
        change = new[i] - old[i]
        assert (change @ directions[:k].T).abs().max() < 1e-8
        assert (change @ directions[k:].T).abs().max() > 1e-4


@pytest.mark.parametrize("make", [mixtral, gpt_oss, resnet])
def test_each_expert_and_kernel_moves_within_its_singular_directions(make, tmp_path):
    model = in_double(make())
    before = {m.name: [part.clone() for part in m.slices()] for m in weight_matrices(model, head=True)}
    trainer = make_trainer("graddiff", tmp_path, model, singular_rank=2, **ADAMW)
    trainer.train()
    for matrix in weight_matrices(trainer.model, head=True):
        for old, new in zip(before[matrix.name], matrix.slices(), strict=True):
            u, _, vh = torch.linalg.svd(old, full_matrices=False)
            change = new - old
            assert change.abs().max() > 0
            inside = u[:, :2] @ u[:, :2].T @ change @ vh[:2].T @ vh[:2]
            torch.testing.assert_close(inside, change, rtol=1e-6, atol=1e-9)


def test_weights_that_a_model_reads_past_their_module_are_held_and_named(tmp_path, said):
    model = mamba().double()  # reads its convolution and the projection of the time step that way
    before = weights(model)
    trainer = make_trainer("graddiff", tmp_path, model, update_rule="subspace", subspace_energy=0.8, **ADAMW)
    trainer.train()
    changed = moved(before, trainer.model)
    assert {name.split("mixer.")[1] for name in changed} == {"in_proj.weight", "x_proj.weight", "out_proj.weight"}
    assert "No input of 4 weight matrices was seen, such as backbone.layers.0.mixer.conv1d.weight" in said.text


def test_what_does_not_reach_most_weights_is_refused_unless_they_were_chosen(tmp_path, said):
    for method, options, what in [
        ("svd_forget", {}, "svd_forget"),
        ("lora_edit", {}, "lora_edit"),
        ("graddiff", {"update_rule": "subspace"}, 'update_rule="subspace"'),
    ]:
        with pytest.raises(
            ValueError, match="of the weights of this Llama4ForCausalLM only: not model.layers.0.feed"
        ) as e:
            make_trainer(method, tmp_path, llama4(), **options)
        if not options:  # known without weights too
            args = METHODS[method].config_class(str(tmp_path), use_cpu=True)
            with torch.device("meta"), pytest.raises(ValueError, match=re.escape(str(e.value))):
                require_architecture(METHODS[method], args, llama4())
        assert str(e.value).startswith(f"{what} reaches ") and "set trainable" in str(e.value)
        make_trainer(method, tmp_path, llama4(), trainable=r".*layers.*(self_attn|feed_forward).*", **options)
        assert f"{what} reaches " in said.text and "that may move." in said.text
        said.clear()
    make_trainer("svd_forget", tmp_path, llama4(), trainable=r".*self_attn.*_proj.*")
    assert "svd_forget reaches" not in said.text
    with pytest.raises(ValueError, match="lora_edit reaches .* of this ResNetForImageClassification only"):
        make_trainer("lora_edit", tmp_path, resnet())


def test_a_setting_says_what_share_may_move(tmp_path, said):
    trainer = make_trainer("graddiff", tmp_path, in_double(mixtral()), singular_rank=2)
    movable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = movable / sum(p.numel() for p in trainer.model.parameters())
    assert f"singular_rank=2 moves weight matrices alone, here {share:.1%} of all parameters." in said.text


def logits(model, trainer):
    batch = trainer.data_collator([trainer.train_dataset.forget[i] for i in range(6)])
    with torch.no_grad():
        return target_logits(model.eval(), batch).logits


@pytest.mark.parametrize("kind", EXPERTS)
def test_lora_edit_adapts_experts_and_merges_them_exactly(kind, tmp_path):
    n = 40  # all of them
    model, original = in_double(EXPERTS[kind]()), in_double(EXPERTS[kind]())
    trainer = make_trainer("lora_edit", tmp_path, model, n_modules=n, max_steps=3, learning_rate=1e-2)
    torch.testing.assert_close(logits(trainer.model, trainer), logits(original, trainer), rtol=0, atol=1e-9)
    assert sum(".experts." in name for name in trainer.chosen) in (2, 4)
    with trainer.model.disable_adapter():
        assert (logits(trainer.model, trainer) - logits(original, trainer)).abs().max() > 1e-3
    unmerged, finish = {}, trainer.finish

    def keep_unmerged():
        unmerged["logits"] = logits(trainer.model, trainer)
        finish()

    trainer.finish = keep_unmerged
    trainer.train()
    torch.testing.assert_close(logits(trainer.model, trainer), unmerged["logits"], rtol=0, atol=1e-9)
    changed = moved(weights(original), trainer.model)
    names = {matrix.name for matrix in weight_matrices(original)}
    assert changed == {name if name in names else f"{name}.weight" for name in trainer.chosen}
    # Each expert within the rank of its own adapter.
    for name in changed:
        if ".experts." in name:
            change = trainer.model.get_parameter(name) - original.get_parameter(name)
            assert all(0 < torch.linalg.matrix_rank(part, rtol=1e-9) <= 8 for part in change)
    trainer.save_model(tmp_path / "saved")
    assert not moved(weights(trainer.model), type(original).from_pretrained(tmp_path / "saved", dtype="auto"))


def test_rmu_moves_the_second_projections_of_all_experts(tmp_path):
    trainer = make_trainer("rmu", tmp_path, in_double(qwen2_moe()))
    before = weights(trainer.model)
    trainer.train()
    assert moved(before, trainer.model) == {
        f"model.layers.{i}.mlp.{name}"
        for i in (0, 1)
        for name in ("experts.down_proj", "shared_expert.down_proj.weight")
    }


def test_second_projections_of_dense_models_are_those_of_their_mlps():
    assert [m.name for m in second_projections(tiny_llama())] == [
        f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)
    ]


def test_neurons_of_fused_experts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="experts of GptOssForCausalLM are fused"):
        make_trainer("head_mask", tmp_path, gpt_oss(), neurons=True)
    assert make_trainer("head_mask", tmp_path, in_double(gpt_oss())).gates.log_alpha.numel() == 8


@pytest.mark.parametrize(
    ("lora", "share"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, True),
        ({"target_modules": "all-linear"}, False),  # peft counts the experts of a Mixtral among them
        (
            {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
            False,
        ),
    ],
)
def test_an_adapter_says_what_it_leaves_of_a_mixture(lora, share, tmp_path, said):
    model = in_double(mixtral())
    total = sum(matrix.parameter.numel() for matrix in weight_matrices(model))
    make_trainer("npo", tmp_path, model, peft_config=LoraConfig(r=2, **lora))
    covered = 2 * (32 * 32 + 16 * 32) / total
    said_so = f"The adapter covers {covered:.1%} of the weights of the blocks. Fused experts (down_proj, gate_up_proj)"
    assert (said_so in said.text) is share


def test_an_adapter_of_a_dense_model_says_nothing(tmp_path, said):
    make_trainer("npo", tmp_path, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    assert "The adapter covers" not in said.text
