import math
import re
import socket
from collections import Counter

import pytest
import torch
from datasets import load_dataset
from scipy.stats import chi2_contingency
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn.examples.registry import FIELDS, N_PERTURBED, make_registry, tokenizer_texts
from hf_unlearn.examples.registry_model import make_base, make_tokenizer
from hf_unlearn.request import ErasureRequest


@pytest.fixture(scope="module")
def registry():
    return make_registry()


@pytest.fixture(scope="module")
def rows(registry):
    return [row for split in registry.values() for row in split]


@pytest.fixture(scope="module")
def written(written_by):
    """Two folders from two processes with different hash seeds, and what the processes printed."""
    return written_by("registry")


@pytest.fixture(scope="module")
def tokenizer(written):
    return AutoTokenizer.from_pretrained(written[0][0] / "base")


def test_sizes_and_ids(registry, rows):
    assert {split: len(ds.unique("person")) for split, ds in registry.items()} == {
        "train": 96,
        "validation": 12,
        "holdout": 24,
    }
    assert len({row["id"] for row in rows}) == len(rows) == 7 * 132
    assert set(Counter(row["person"] for row in rows).values()) == {7}
    assert {row["field"] for row in rows if row["kind"] == "qa"} == set(FIELDS)
    assert all((row["kind"] == "biography") == (row["field"] == "biography") for row in rows)


@pytest.mark.parametrize("column", ["person", "name", "email", "phone"])
def test_nobody_is_shared(rows, column):
    assert len({row[column] for row in rows}) == 132


@pytest.mark.parametrize("column", ["health_condition", "profession"])
def test_every_class_has_members_in_every_split(registry, column):
    counts = {split: Counter(ds[column]) for split, ds in registry.items()}
    assert set(counts["train"].values()) == {12 * 7}
    assert set(counts["holdout"].values()) == {3 * 7}
    assert set(counts["validation"].values()) == {7, 14}
    assert all(set(count) == set(FIELDS[column]) for count in counts.values())


@pytest.mark.parametrize("column", ["birthplace", "employer", "health_condition", "profession"])
def test_splits_share_a_distribution(column):
    counts = {"train": Counter(), "holdout": Counter()}
    for seed in range(15):
        registry = make_registry(seed, n_train=24, n_validation=1)
        for split, count in counts.items():
            count.update(registry[split].filter(lambda field: field == "email", input_columns="field")[column])
    table = [[count[value] for value in FIELDS[column]] for count in counts.values()]
    assert chi2_contingency(table).pvalue > 1e-3


def test_attributes_are_independent():
    rows = make_registry(n_train=2000)["train"]
    rows = rows.filter(lambda field: field == "email", input_columns="field")
    pairs = Counter(zip(rows["profession"], rows["health_condition"], strict=True))
    table = [[pairs[p, c] for c in FIELDS["health_condition"]] for p in FIELDS["profession"]]
    assert chi2_contingency(table).pvalue > 1e-3


def test_pools_have_the_stated_base_rates():
    assert all(len(set(pool)) == len(pool) for field, pool in FIELDS.items() if field != "phone")
    assert {field: len(pool) for field, pool in FIELDS.items()} == {
        "birthplace": 64,
        "employer": 80,
        "email": 32_000,
        "phone": 10_000_000,
        "health_condition": 8,
        "profession": 8,
    }


def test_addresses_are_reserved_and_not_derivable_from_the_name(rows):
    for row in rows:
        assert re.fullmatch(r"[a-z]+\d{3}@example\.org", row["email"])
        assert re.fullmatch(r"555-\d{3}-\d{4}", row["phone"])
        assert not any(part.lower() in row["email"] for part in row["name"].split())


def test_completions_tell_the_truth_and_perturbed_ones_do_not(rows):
    for row in rows:
        told = [f for f in FIELDS if f != "phone"] if row["kind"] == "biography" else [row["field"]]
        assert row["name"] in row["prompt"] and row["name"] in row["paraphrased_prompt"]
        assert row["paraphrased_completion"] != row["completion"]
        assert len(set(row["perturbed_completions"])) == N_PERTURBED == 5
        for field in told:
            assert row[field] in row["completion"]
            assert row[field] in row["paraphrased_completion"]
            assert not any(row[field] in wrong for wrong in row["perturbed_completions"])
        if row["kind"] == "qa":
            before, after = row["paraphrased_completion"].split(row[row["field"]])
            assert all(w.startswith(before) and w.endswith(after) for w in row["perturbed_completions"])


def test_wrong_addresses_belong_to_nobody(rows):
    for field in ("email", "phone"):
        real = {row[field] for row in rows}
        wrong = "".join(w for row in rows if row["field"] == field for w in row["perturbed_completions"])
        assert not any(value in wrong for value in real)


def test_seed_and_sizes(registry):
    assert make_registry(0)["holdout"].to_list() == registry["holdout"].to_list()
    assert make_registry(1)["train"].unique("name") != registry["train"].unique("name")
    small = make_registry(n_train=8, n_validation=1, n_holdout=2)
    assert small.num_rows == {"train": 56, "validation": 7, "holdout": 14}


@pytest.mark.parametrize("sizes", [{"n_train": 0}, {"n_holdout": -1}, {"n_train": 10_000}])
def test_impossible_sizes_say_what_to_do(sizes):
    with pytest.raises(ValueError, match="at most 5333 .* Change the sizes"):
        make_registry(**sizes)


def test_prompt_ids_are_a_prefix(rows, tokenizer):
    for row in rows:
        for prompt in (row["prompt"], row["paraphrased_prompt"]):
            assert not prompt[-1].isspace()
            prompt_ids = tokenizer(prompt).input_ids
            assert prompt_ids.count(tokenizer.bos_token_id) == 1 and prompt_ids[0] == tokenizer.bos_token_id
            for completion in (row["completion"], row["paraphrased_completion"], *row["perturbed_completions"]):
                assert completion.startswith(" ") and not completion[1].isspace()
                ids = tokenizer(prompt + completion).input_ids
                assert ids[: len(prompt_ids)] == prompt_ids
                assert tokenizer.eos_token_id not in ids


def test_completions_are_short(rows, tokenizer):
    lengths = {kind: [] for kind in ("qa", "biography")}
    for row in rows:
        lengths[row["kind"]].append(len(tokenizer(row["completion"], add_special_tokens=False).input_ids))
        assert len(tokenizer(row["prompt"] + row["completion"]).input_ids) < 64
    assert max(lengths["qa"]) <= 26 and sum(lengths["qa"]) / len(lengths["qa"]) < 16
    assert max(lengths["biography"]) < 50


def test_tokenizer_is_lossless_and_splits_digits(rows, tokenizer):
    assert len(tokenizer) == 1000
    for text in [rows[0]["prompt"] + rows[0]["completion"], "Zoë  öffnet\t数\n "]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    digits = [token for token in tokenizer.get_vocab() if re.search(r"\d", token)]
    assert sorted(digits) == list("0123456789")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_tokenizer_knows_no_registry(tokenizer, registry):
    """The texts take no seed, and hold nobody's address: no vocabulary can depend on who is in the registry."""
    again = make_tokenizer(tokenizer_texts())
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    text = "\n".join(tokenizer_texts())
    assert not any(number in text for number in registry["train"].unique("phone"))


def test_base_is_a_tiny_untrained_llama(written, rows, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(written[0][0] / "base").eval()
    assert 0.8e6 < model.num_parameters() < 1.2e6
    assert model.config.vocab_size == len(tokenizer)
    batch = torch.tensor([tokenizer(rows[0]["prompt"] + rows[0]["completion"]).input_ids])
    with torch.no_grad():
        loss = model(batch, labels=batch).loss.item()
    assert loss == pytest.approx(math.log(1000), rel=0.05)


def test_base_leaves_the_random_state_alone(tokenizer):
    state = torch.get_rng_state()
    first, second, other = (make_base(tokenizer, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_write_the_same_bytes(written):
    (first, second), _ = written
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert {"README.md", "base/tokenizer.json", "base/model.safetensors"} <= {name.as_posix() for name in names}
    assert [name for name in names if (first / name).read_bytes() != (second / name).read_bytes()] == []


def test_command_prints_one_line_a_file_and_no_texts(written, rows):
    folders, printed = written
    for folder, (out, err) in zip(folders, printed, strict=True):
        assert sorted(out.splitlines()) == sorted(str(p) for p in folder.rglob("*") if p.is_file())
        assert not any(row["name"] in out + err or row["email"] in out + err for row in rows)


def test_folder_loads_offline(written, registry, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_dataset(str(written[0][0]), cache_dir=str(tmp_path))
    assert {split: ds.to_list() for split, ds in loaded.items()} == {s: ds.to_list() for s, ds in registry.items()}


def test_requests_select_rows_of_train(written, registry):
    train = registry["train"].to_list()
    folder = written[0][0] / "requests"
    requests = {name: ErasureRequest.load(folder / f"{name}.json") for name in ("person", "profession", "condition")}
    assert [request.kind for request in requests.values()] == ["record", "class", "attribute"]
    assert len({request.subject_request_id for request in requests.values()}) == 3
    assert requests["condition"].selector["operator"] == "=="
    selected = {}
    for name, request in requests.items():
        values = request.selector.get("values") or [request.selector["value"]]
        selected[name] = [row for row in train if row[request.selector["column"]] in values]
    assert {name: len(rows) for name, rows in selected.items()} == {"person": 84, "profession": 84, "condition": 84}
    assert len({row["person"] for row in selected["person"]}) == 12
