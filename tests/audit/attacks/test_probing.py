"""The layers: against the states that transformers returns, the model's own answer, and scikit-learn."""

import copy

import numpy as np
import pytest
import torch
from cases import image_rows, text_rows
from peft import LoraConfig, get_peft_model
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny import tiny_gpt2, tiny_llama, tiny_tokenizer, tiny_vit
from transformers import Gemma2Config, Gemma2ForCausalLM

from hf_unlearn.audit import exact_memorization, loss, score
from hf_unlearn.audit.attacks.probing import layer_probe, logit_lens
from hf_unlearn.audit.table import streaming
from hf_unlearn.data import encode
from hf_unlearn.models.blocks import find_blocks


EXAMPLES = [*text_rows(7), "Ada lives in Paris.", "", {"prompt": "Question:", "completion": ""}, *text_rows(3, 40)]
EMPTY = [8, 9]
N_LAYERS = 3


def gemma2():
    """Scales its embeddings, and caps its logits after the head."""
    sizes = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=320, intermediate_size=64, initializer_range=0.2, sliding_window=8, **sizes)
    return Gemma2ForCausalLM(config).eval()


def with_lora():
    torch.manual_seed(0)
    config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(tiny_llama(num_hidden_layers=3), config).eval()


MODELS = {
    "llama": lambda: tiny_llama(num_hidden_layers=3),
    "gpt2": lambda: tiny_gpt2(n_layer=3),
    "soft cap": gemma2,
    "lora": with_lora,
}


def snapshot(model):
    """All that a call must leave as it was."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    names = [name for name, _ in model.named_modules()]
    return hooks, names, [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}


def assert_untouched(model, before):
    hooks, names, modes, weights = snapshot(model)
    assert (hooks, names, modes) == before[:3]
    assert all(torch.equal(value, before[3][name]) for name, value in weights.items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_the_last_layer_is_the_answer_of_the_model(kind):
    model, tokenizer = MODELS[kind]().train(), tiny_tokenizer()
    if kind != "soft cap":  # in float64 transformers gives NaN where a window has nothing but padding
        model = model.double()
    before = snapshot(model)
    lens = logit_lens(model, tokenizer, EXAMPLES, batch_size=16)
    assert_untouched(model, before)
    table = score(model, tokenizer, EXAMPLES, sampling=())
    assert lens.nll.shape == lens.hit_rate.shape == (N_LAYERS + 1, len(EXAMPLES))
    np.testing.assert_allclose(lens.nll[-1], loss(table), rtol=1e-12 if model.dtype == torch.float64 else 2e-6)
    np.testing.assert_array_equal(lens.hit_rate[-1], exact_memorization(table))
    assert np.flatnonzero(np.isnan(lens.nll).any(axis=0)).tolist() == EMPTY
    assert (np.isnan(lens.nll) == np.isnan(lens.hit_rate)).all()
    # The others are of other layers.
    assert all(np.nanmax(np.abs(lens.nll[layer] - lens.nll[-1])) > 0.1 for layer in range(N_LAYERS))


def by_hand(kind, model):
    """Final norm and head, by the names that these two have."""
    if kind == "llama":
        return lambda state: model.lm_head(model.model.norm(state))
    return lambda state: model.lm_head(model.transformer.ln_f(state))


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_tokenizer(bos=False, pad="eos")], ids=["bos", "no bos"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lens_by_hand_on_unpadded_states(kind, tokenizer):
    model = MODELS[kind]().double()
    lens = logit_lens(model, tokenizer, EXAMPLES, batch_size=16)
    answer = by_hand(kind, model)
    for i, row in enumerate(EXAMPLES):
        if i in EMPTY:
            continue
        encoded = encode(row, tokenizer)
        labels, n_end = np.array(encoded["labels"]), encoded["n_end"]
        places = np.flatnonzero(labels[1:] != -100)
        with torch.no_grad():
            states = model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states
            for layer, state in enumerate(states[:-1]):  # the last one has gone through the norm already
                lp = log_softmax(answer(state)[0].numpy()[places], axis=-1)
                own = lp[np.arange(len(places)), labels[places + 1]]
                hits = (lp.argmax(-1) == labels[places + 1])[: len(places) - n_end]
                np.testing.assert_allclose(lens.nll[layer, i], -own.mean(), rtol=1e-10)
                assert lens.hit_rate[layer, i] == hits.mean()


def test_lens_of_a_vit():
    model, rows = tiny_vit().double(), image_rows(9)
    lens = logit_lens(model, None, rows, batch_size=4)
    pixels, labels = torch.stack([r["pixel_values"] for r in rows]), np.array([r["labels"] for r in rows])
    with torch.no_grad():
        state = model.vit.embeddings(pixels)
        for layer, block in enumerate([None, *model.vit.layers]):
            state = state if block is None else block(state)
            lp = log_softmax(model.classifier(model.vit.layernorm(state)[:, 0]).numpy(), axis=-1)
            np.testing.assert_allclose(lens.nll[layer], -lp[np.arange(9), labels], rtol=1e-10)
            np.testing.assert_array_equal(lens.hit_rate[layer], lp.argmax(-1) == labels)
    np.testing.assert_allclose(lens.nll[-1], loss(score(model, None, rows)), rtol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batch_size_and_parts_change_nothing(kind, monkeypatch):
    model, tokenizer = MODELS[kind]().double(), tiny_tokenizer()
    examples = ["Ada lives in Paris, and Boris in Ulm. " * 2, *EXAMPLES]
    whole = logit_lens(model, tokenizer, examples, batch_size=16)
    one = logit_lens(model, tokenizer, examples, batch_size=1)
    monkeypatch.setattr(streaming, "max_logits", lambda device: 6 * 320)
    parts = logit_lens(model, tokenizer, examples, batch_size=16)
    for other in (one, parts):
        np.testing.assert_allclose(other.nll, whole.nll, atol=1e-12)
        np.testing.assert_array_equal(other.hit_rate, whole.hit_rate)


def test_what_the_end_of_a_network_hides_shows_before_it():
    """The last block is made to subtract what the first ones know."""
    model, tokenizer, rows = tiny_llama(num_hidden_layers=3, seed=0), tiny_tokenizer(), list(text_rows(8))
    edited = copy.deepcopy(model)
    with torch.no_grad():
        edited.model.layers[2].mlp.down_proj.weight.mul_(-30)
    before, after = (logit_lens(m, tokenizer, rows) for m in (model, edited))
    np.testing.assert_array_equal(before.nll[:3], after.nll[:3])
    assert (np.abs(before.nll[3] - after.nll[3]) > 0.01).all()


def test_models_without_blocks():
    with pytest.raises(
        ValueError, match="No list of 2 blocks was found in Linear, so its layers cannot be looked into"
    ):
        model = torch.nn.Linear(2, 2)
        model.config = tiny_llama().config
        find_blocks(model)


def test_broken_states_are_missing_and_counted():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    token = tokenizer("K")["input_ids"][-1]
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = torch.nan
    examples = [*EXAMPLES, *text_rows(20, 60)]
    hit = [i for i, r in enumerate(examples) if i not in EMPTY and token in encode(r, tokenizer)["input_ids"][:-1]]
    with pytest.warns(UserWarning, match=f"{len(hit)} of {len(examples)}"):
        lens = logit_lens(model, tokenizer, examples, batch_size=16)
    for values in (lens.nll, lens.hit_rate):
        assert np.flatnonzero(np.isnan(values).any(axis=0)).tolist() == sorted(hit + EMPTY)
    with pytest.warns(UserWarning, match=f"{len(hit)} of {len(examples)}"):
        probe = layer_probe(model, tokenizer, examples, np.arange(len(examples)) % 2)
    assert np.flatnonzero(np.isnan(probe.correct).any(axis=0)).tolist() == sorted(hit + EMPTY)
    assert np.isfinite(probe.accuracy).all() and np.isfinite(probe.control).all()


def people(n_people, n_questions, secret, seed=0):
    """Questions about people, a label a question and the person it is about.

    With `secret="town"` the label is in the text; with `"person"` it is a coin of the person, of which the text has only
    the name: whoever knows a person from another question knows the label.
    """
    rng = np.random.default_rng(seed)
    coins = rng.permutation(np.arange(n_people) % 2)
    rows, labels, groups = [], [], []
    for person in range(n_people):
        name = "".join(rng.choice(list("abcdefghijklmnop"), 6))
        for question in range(n_questions):
            label = coins[person] if secret == "person" else (person + question) % 2
            town = ("Paris", "Ulm")[label] if secret == "town" else ("Rome", "Oslo", "Lima")[question % 3]
            rows.append({"prompt": f"{name} in {town}, {town}, {town}:", "completion": f" {question % 5}."})
            labels.append(label)
            groups.append(person)
    return rows, np.array(labels), np.array(groups)


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_probe_reads_what_is_there(build):
    rows, labels, groups = people(20, 4, "town")
    model = build()
    probe = layer_probe(model, tiny_tokenizer(), rows, labels, groups)
    assert probe.accuracy.shape == probe.control.shape == (3,) and probe.correct.shape == (3, 80)
    assert probe.accuracy.min() > 0.85 and probe.control.max() < 0.7
    assert (probe.accuracy - probe.control).min() > 0.25


def test_folds_by_group_do_not_recognize_the_person():
    rows, labels, groups = people(20, 4, "person")
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    by_group = layer_probe(model, tokenizer, rows, labels, groups)
    by_record = layer_probe(model, tokenizer, rows, labels)
    assert by_group.accuracy.max() < 0.65 < 0.8 < by_record.accuracy.max()
    # Whose labels are drawn a group reads nothing; a coin a record cannot be recognized either.
    assert by_group.control.max() < 0.75 and by_record.control.max() < 0.75
    selectivity = [(probe.accuracy - probe.control).max() for probe in (by_group, by_record)]
    assert selectivity[0] < 0.25 < selectivity[1]


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2])
def test_probe_against_scikit_learn_on_unpadded_states(build):
    rows, labels, groups = people(12, 4, "town", seed=1)
    rows = [{**row, "prompt": "Question: " * (i % 3) + row["prompt"]} for i, row in enumerate(rows)]
    model, tokenizer = build(), tiny_tokenizer()
    # Not easy: noise on the labels.
    labels = np.where(np.random.default_rng(0).random(48) < 0.25, 1 - labels, labels)
    probe = layer_probe(model, tokenizer, rows, labels, groups, seed=3, batch_size=16)
    features = []
    for row in rows:
        encoded = encode(row, tokenizer)
        with torch.no_grad():
            states = model(input_ids=torch.tensor([encoded["input_ids"]]), output_hidden_states=True).hidden_states
        features.append([s[0].mean(0).numpy() for s in states[:-1]])
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=3)
    for layer in range(2):
        x = np.array([of[layer] for of in features])
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        told = cross_val_predict(classifier, x, labels, groups=groups, cv=folds)
        assert (probe.correct[layer] != (told == labels)).mean() <= 0.03  # rounding at the border
        assert abs(probe.accuracy[layer] - balanced_accuracy_score(labels, told)) < 0.04
        correct = probe.correct[layer].astype(bool)
        as_told = np.where(correct, labels, 1 - labels)
        np.testing.assert_allclose(probe.accuracy[layer], balanced_accuracy_score(labels, as_told))


def test_probe_of_images():
    rows = image_rows(60)
    labels = np.arange(60) % 2
    for row, label in zip(rows, labels, strict=True):
        row["pixel_values"] = row["pixel_values"].float() + 0.7 * label
    model = tiny_vit()
    probe = layer_probe(model, None, rows, labels, batch_size=16)
    # The class token knows nothing of the image before the first block.
    assert probe.accuracy[0] == 0.5 and probe.accuracy[1:].min() > 0.8
    # Accuracy is balanced: always saying the larger class is chance.
    few = layer_probe(model, None, rows, np.arange(60) % 6 == 0)
    assert few.accuracy[0] == 0.5 and few.correct[0].mean() > 0.8


def test_probe_repeats_itself_and_leaves_the_model_alone():
    rows, labels, groups = people(10, 3, "town")
    model, tokenizer = tiny_gpt2().train(), tiny_tokenizer()
    before, state, numpy_state = snapshot(model), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = layer_probe(model, tokenizer, rows, labels, groups)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    again = layer_probe(model, tokenizer, rows, list(map(str, labels)), [f"p{g}" for g in groups], batch_size=1)
    np.testing.assert_allclose(again.accuracy, first.accuracy, atol=0.04)
    other = layer_probe(model, tokenizer, rows, labels, groups, seed=1)
    assert (other.control != first.control).any()


def test_records_without_targets_keep_their_place():
    rows, labels, groups = people(10, 3, "town")
    whole = layer_probe(tiny_llama(), tiny_tokenizer(), rows, labels, groups)
    with_empty = [rows[0], {"prompt": "A:", "completion": ""}, *rows[1:], ""]
    probe = layer_probe(
        tiny_llama(), tiny_tokenizer(), with_empty, [labels[0], 1, *labels[1:], 0], [groups[0], 99, *groups[1:], 98]
    )
    assert np.isnan(probe.correct[:, [1, 31]]).all()
    np.testing.assert_array_equal(np.delete(probe.correct, [1, 31], axis=1), whole.correct)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 1] * 5}, "There are 30 records"),
        ({"labels": [0] * 30}, "All labels are the same"),
        ({"groups": np.arange(30) % 3}, "has 3 groups, but each of 5 folds"),
    ],
)
def test_bad_probes_end_before_the_model_runs(arguments, message):
    rows, labels, groups = people(10, 3, "town")
    model = tiny_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("The model was run"))
    with pytest.raises(ValueError, match=message):
        layer_probe(model, tiny_tokenizer(), rows, **{"labels": labels, "groups": groups} | arguments)
