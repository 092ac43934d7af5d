import inspect
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy
from score_table import table
from sklearn.svm import SVC
from tiny import tiny_vit

from hf_unlearn.audit import auc, score
from hf_unlearn.audit.measures.aggregates import average_gap
from hf_unlearn.audit.measures.classifiers import (
    CLASS_ATTACKS,
    confidence,
    correctness,
    entropy,
    forget_efficacy,
    modified_entropy,
    salun_row,
    svc_attack,
)


def labels_table(logits, labels, dtype=np.float64):
    """The table of images with these logits `(n, C)`."""
    labels = np.asarray(labels)
    log_p = log_softmax(np.asarray(logits, np.float64), axis=1).astype(dtype)
    p = np.exp(log_p.astype(np.float64))
    scores = table(
        [[value] for value in log_p[np.arange(len(labels)), labels]],
        hits=[[hit] for hit in log_p.argmax(axis=1) == labels],
        mean=[[value] for value in np.where(p > 0, p * np.nan_to_num(log_p), 0).sum(axis=1)],
        dtype=dtype,
    )
    scores = replace(scores, target_ids=labels.astype(np.int32), class_log_probs=log_p, meta={"targets": "label"})
    return scores


def images(n, seed, gain=0.0, n_classes=5):
    """Images whose label has a logit that is higher by `gain`, in classes of a random size."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(n, n_classes))
    logits[np.arange(n), labels] += 1 + gain
    return labels_table(logits, labels)


def test_modified_entropy_by_a_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 3, (20, 6)), rng.integers(6, size=20)
    expected = []
    for row, y in zip(logits, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        value = -(1 - p[y]) * np.log(p[y])
        for c in range(6):
            if c != y:
                value -= p[c] * np.log(1 - p[c])
        expected.append(value)
    np.testing.assert_allclose(modified_entropy(labels_table(logits, labels)), expected, rtol=1e-12)


def test_modified_entropy_reads_each_row_by_its_own_label():
    # An error found elsewhere changes the columns of all labels in all rows.
    scores = labels_table(np.random.default_rng(1).normal(size=(9, 4)), np.arange(9) % 4)
    together = modified_entropy(scores)
    for i in range(9):
        alone = labels_table(scores.class_log_probs[i : i + 1], [i % 4])
        assert modified_entropy(alone)[0] == pytest.approx(together[i], rel=1e-12)


@pytest.mark.filterwarnings("error")
def test_modified_entropy_of_sure_predictions():
    logits = [[800.0, 0, 0], [0, 800.0, 0], [40.0, 0, 0], [0, 40.0, 0]]
    right, wrong, nearly, nearly_wrong = modified_entropy(labels_table(logits, [0, 0, 0, 0]))
    assert right == 0 and wrong == pytest.approx(1600, rel=1e-3)
    # (1 - p) (-ln p) is (2 e^-40)^2 and would round to 0; the others add 2 e^-80 more.
    assert nearly == pytest.approx(6 * np.exp(-80), rel=1e-9) and nearly_wrong == pytest.approx(80, rel=0.02)
    no_chance = labels_table([[0.0, -np.inf, 1.0]], [1])
    assert modified_entropy(no_chance)[0] == np.inf


def test_entropy_and_confidence_agree_with_scipy():
    scores = images(30, 2)
    p = np.exp(scores.class_log_probs)
    np.testing.assert_allclose(entropy(scores), scipy_entropy(p, axis=1), rtol=1e-12)
    np.testing.assert_allclose(confidence(scores), p[np.arange(30), scores.target_ids], rtol=1e-12)
    np.testing.assert_array_equal(correctness(scores), p.argmax(axis=1) == scores.target_ids)


def test_32_bit_tables_give_the_same():
    logits, labels = np.random.default_rng(3).normal(0, 2, (30, 7)), np.arange(30) % 7
    single, double = (labels_table(logits, labels, dtype) for dtype in (np.float32, np.float64))
    for name, attack in CLASS_ATTACKS.items():
        assert attack(single).dtype == np.float64, name
        np.testing.assert_allclose(attack(single), attack(double), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", CLASS_ATTACKS)
def test_attacks_rank_members_higher_and_mark_what_is_not_a_number(name):
    members, others = images(300, 5, gain=2.0), images(300, 6)
    assert auc(CLASS_ATTACKS[name](members), CLASS_ATTACKS[name](others)).low > 0.5
    broken = images(4, 7)
    for column in (broken.log_prob, broken.mean, broken.class_log_probs):
        column[2] = np.nan
    np.testing.assert_array_equal(np.isnan(CLASS_ATTACKS[name](broken)), [0, 0, 1, 0])


def test_tables_of_texts_are_refused():
    with pytest.raises(ValueError, match="Only tables of image classifiers"):
        modified_entropy(table([[-1.0]]))


def test_svc_attack_agrees_with_plain_sklearn():
    tables = images(40, 8, gain=1.0), images(60, 9, gain=2.0), images(60, 10)
    found = svc_attack(*tables)
    forget, retain, test = (
        np.exp(scores.class_log_probs)[np.arange(len(scores)), scores.target_ids][:, None] for scores in tables
    )
    model = SVC(C=3, kernel="rbf", gamma=1.0).fit(np.concatenate([retain, test]), [1] * 60 + [0] * 60)
    np.testing.assert_array_equal(found, model.predict(forget))
    efficacy = forget_efficacy(found)
    assert efficacy.value == pytest.approx(1 - model.predict(forget).mean()) and efficacy.n == (40,)


def test_svc_attack_takes_as_many_retain_as_test_images():
    forget, test = images(30, 11), images(40, 12)
    retain = images(400, 13, gain=2.0)
    found = svc_attack(forget, retain, test, seed=3)
    chosen = np.sort(np.random.default_rng(3).choice(400, 40, replace=False))
    x = np.concatenate([confidence(retain)[chosen], confidence(test)])[:, None]
    expected = SVC(C=3, gamma="auto").fit(x, [1] * 40 + [0] * 40).predict(confidence(forget)[:, None])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(svc_attack(forget, retain, test, seed=3), found)
    # With all 400 nearly everything would be taken for a member.
    unbalanced = np.concatenate([confidence(retain), confidence(test)])[:, None]
    assert SVC(C=3, gamma="auto").fit(unbalanced, [1] * 400 + [0] * 40).predict(x[-40:]).mean() > found.mean()


def test_svc_attack_knows_members_and_leaves_out_what_is_not_a_number():
    retain, test = images(300, 14, gain=6.0), images(300, 15)
    members, others = images(50, 16, gain=6.0), images(50, 17)
    assert forget_efficacy(svc_attack(members, retain, test)).value < 0.15
    assert forget_efficacy(svc_attack(others, retain, test)).value > 0.6
    others.log_prob[4] = np.nan
    efficacy = forget_efficacy(svc_attack(others, retain, test))
    assert (efficacy.n, efficacy.n_missing) == ((49,), 1)
    with pytest.raises(ValueError, match="0 test images"):
        svc_attack(members, retain, test[:0])


def test_a_row_of_the_salun_table():
    tables = images(80, 28, gain=0.5), images(200, 29, gain=2.0), images(90, 30)
    row = salun_row(*tables)
    forget, retain, test = (correctness(scores).mean() for scores in tables)
    assert list(row) == ["UA", "RA", "TA", "MIA"]
    assert [row[name].value for name in ("UA", "RA", "TA")] == pytest.approx([1 - forget, retain, test])
    assert row["MIA"].value == forget_efficacy(svc_attack(*tables)).value
    values = {name: estimate.value for name, estimate in row.items()}
    assert average_gap(values, values).value == 0


def test_no_attack_changes_the_global_random_state():
    before = np.random.get_state()[1].copy()
    salun_row(images(20, 31), images(50, 32), images(20, 33))
    np.testing.assert_array_equal(np.random.get_state()[1], before)


def test_sklearn_still_knows_the_arguments_that_are_used():
    assert {"C", "kernel", "gamma"} <= set(inspect.signature(SVC).parameters)


def test_scored_images_of_a_vit():
    import torch

    model = tiny_vit(n_classes=5)
    pixels = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = [i % 5 for i in range(12)]
    rows = [{"pixel_values": pixel, "labels": label} for pixel, label in zip(pixels, labels, strict=True)]
    scores = score(model, None, rows, batch_size=5)
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits.double().numpy()
    by_hand = labels_table(logits, labels)
    for name, attack in CLASS_ATTACKS.items():
        np.testing.assert_allclose(attack(scores), attack(by_hand), rtol=2e-5, err_msg=name)
