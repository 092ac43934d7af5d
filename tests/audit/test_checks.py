"""Every mistake in a request is an error before a model is loaded, and the message says what to do."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import text_rows
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_unlearn.audit import AuditConfig
from hf_unlearn.audit.checks import check_request, sets_of, threats_of
from hf_unlearn.audit.roles import Models
from hf_unlearn.audit.verdicts.surfaces import THREATS


FORGET, RETAIN, HOLDOUT = text_rows(4), text_rows(6, offset=10), text_rows(5, offset=20)
SECRET = FORGET[1]["prompt"]


def checked(models=None, sets=None, threats=THREATS, config=None, groups=None):
    models = {"unlearned": "u", "original": "o", "retrained": "r"} if models is None else models
    sets = {"forget": FORGET, "retain": RETAIN, "holdout": HOLDOUT} if sets is None else sets
    return check_request(models, sets, threats, config or AuditConfig(), groups)


def test_threat_models_by_one_name_by_all_and_by_several():
    assert threats_of("latent") == ("latent",)
    assert threats_of("all") == threats_of(["latent", "all"]) == THREATS
    assert threats_of(["latent", "extraction", "latent"]) == ("latent", "extraction")
    with pytest.raises(ValueError, match="no threat model, so nothing would be tested.*extraction"):
        threats_of([])
    with pytest.raises(ValueError, match="There is no threat model 'telepathy'. There are extraction"):
        threats_of("telepathy")


def test_sets_from_a_dictionary_and_from_a_split():
    split = SimpleNamespace(forget=FORGET, retain=None, holdout=HOLDOUT)
    assert list(sets_of(split)) == list(sets_of({"forget": FORGET, "retain": None, "holdout": HOLDOUT}))
    assert list(sets_of({"forget": list(FORGET), "holdout": []})) == ["forget", "holdout"]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"forget": FORGET, "retian": RETAIN}, "no set 'retian'.*The sets are forget, retain, holdout"),
        ({"forget": FORGET, "hold_out": HOLDOUT}, "'hold_out'"),
        (DatasetDict(train=FORGET), "'train'"),
        (list(FORGET), r"gave a list as split.*\{'forget': rows"),
        (FORGET, r"gave a Dataset as split.*\{'forget': rows"),
        ({"forget": (row for row in FORGET)}, "forget set is a generator.*Give a list"),
        ({"forget": FORGET, "retain": RETAIN.to_iterable_dataset()}, "retain set is a IterableDataset"),
        ({"forget": "forget.jsonl"}, "forget set is a str"),
        ({"forget": []}, "There is no forget set"),
        (None, "There is no forget set"),
    ],
)
def test_a_split_that_is_none(split, message):
    with pytest.raises(ValueError, match=message) as error:
        sets_of(split)
    assert SECRET not in str(error.value)


def test_what_can_be_audited_passes_without_a_note():
    assert checked() == []
    assert checked(groups=["a", "a", "b", "c"]) == []
    assert checked(sets={"forget": FORGET}, threats=("membership",)) == []
    assert checked(models={"unlearned": "u"}, threats=("extraction",)) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_rows": 5}, "gave a dict as config"),
        (AuditConfig(max_rows=0), "max_rows=0, but it must be at least 1"),
        (AuditConfig(batch_size=-1), "batch_size=-1"),
        (AuditConfig(weight_attacks=("int8", "int3")), "weight_attacks to 'int3'.*int8"),
        (AuditConfig(weight_attacks="int8"), "Give a list of the attacks"),
    ],
)
def test_a_config_that_is_none(config, message):
    with pytest.raises(ValueError, match=message):
        checked(config=config)


def test_the_same_retrained_model_twice_would_show_no_noise(tmp_path):
    model = torch.nn.Linear(1, 1)
    (tmp_path / "r").mkdir()
    again = f"{tmp_path}/x/../r"
    (tmp_path / "x").mkdir()
    for first, second in ((model, model), ("org/r", "org/r"), (str(tmp_path / "r"), again)):
        with pytest.raises(ValueError, match="retrained and retrained_2 are the same"):
            checked(models={"unlearned": "u", "original": "o", "retrained": first, "retrained_2": second})
    # The original in the place of the retrained one is for the audit to find out.
    assert checked(models={"unlearned": model, "original": model, "retrained": model}) == []


def test_both_checkpoints_needs_the_original():
    with pytest.raises(ValueError, match="has the original too"):
        checked(models={"unlearned": "u", "retrained": "r"})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"], "1 groups for 4 rows"),
        ([["a"], ["b"], ["c"], ["d"]], "groups of the forget set are lists or objects"),
        (["a", None, "b", "c"], "1 of the 4 rows of the forget set have no group"),
        ([1.0, float("nan"), 2.0, float("nan")], "2 of the 4 rows"),
    ],
)
def test_groups_that_do_not_fit(groups, message):
    with pytest.raises(ValueError, match=message):
        checked(groups=groups)


def test_relearning_needs_rows_to_train_on():
    one = {"forget": FORGET.select([0]), "holdout": HOLDOUT}
    with pytest.raises(ValueError, match="nothing to train on.*1 forget row"):
        checked(sets=one)
    with pytest.raises(ValueError, match="1 forget group"):
        checked(sets={"forget": FORGET}, groups=["ada"] * 4)
    assert checked(sets=one | {"retain": RETAIN}) == checked(sets=one, threats=("extraction",)) == []


def test_rows_of_the_forget_set_in_the_holdout_are_an_error_and_counted():
    spaced = [{"prompt": SECRET.replace(" ", "  "), "completion": FORGET[1]["completion"]}]
    for rows in (
        [*HOLDOUT, *FORGET.select([0, 2])],
        [*HOLDOUT, *spaced, FORGET[3]],
    ):
        with pytest.raises(
            ValueError, match="2 rows are in the forget set and in the holdout. The holdout must"
        ) as error:
            checked(sets={"forget": FORGET, "retain": RETAIN, "holdout": rows})
        assert "Question" not in str(error.value)


def test_rows_of_the_forget_set_in_the_retain_set_are_a_note():
    (note,) = checked(sets={"forget": FORGET, "retain": [*RETAIN, FORGET[0]]}, threats=("membership",))
    assert note.startswith("1 row of the forget set can be found in the retain set as well")


def _image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "row",
    [
        lambda i: f"text {i}",
        lambda i: {"text": f"text {i}", "prompt": None},
        lambda i: {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": str(i)}]},
        lambda i: {"input_ids": [1, i], "labels": [-100, i]},
        lambda i: {"image": _image(i), "label": 0},
        lambda i: {"pixel_values": torch.full((1, 2, 2), float(i)), "labels": 0},
        lambda i: {"image": {"bytes": bytes([i]), "path": None}, "label": 0},
    ],
)
def test_rows_of_every_kind_are_compared(row):
    rows = [row(i) for i in range(6)]
    sets = {"forget": rows[:3], "holdout": rows[3:]}
    assert checked(sets=sets, threats=("membership",)) == []
    with pytest.raises(ValueError, match="1 row is in the forget set and in the holdout"):
        checked(sets=sets | {"holdout": rows[2:]}, threats=("membership",))


def test_images_of_a_data_set_are_compared_by_their_files():
    rows = Dataset.from_dict({"image": [_image(i) for i in range(4)], "label": [0] * 4})
    with pytest.raises(ValueError, match="1 row is in the forget set and in the holdout"):
        checked(sets={"forget": rows.select([0, 1]), "holdout": rows.select([1, 2])}, threats=("membership",))
    # The same pixels under another label are another example.
    others = rows.select([1, 2]).remove_columns("label").add_column("label", [1, 1])
    assert checked(sets={"forget": rows.select([0, 1]), "holdout": others}, threats=("membership",)) == []


def test_models_take_paths_and_no_retrained_model_in_a_list():
    models = Models(Path("u"), Path("o"), [], shadows=[Path("s")])
    assert models.roles == ["original", "unlearned"]
    assert models.name("unlearned") == "u" and models.given["shadow_1"] == "s"
    assert Models("u", None, [Path("r"), "r2"]).given == {"unlearned": "u", "retrained": "r", "retrained_2": "r2"}
