import json

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.data.rows import content_of
from hf_unlearn.statistics.exchangeability import blind_baseline, image_features, text_features


WORDS = [f"word{i}" for i in range(200)]


def texts(n, seed, words=WORDS, length=(5, 15)):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, rng.integers(*length))) for _ in range(n)]


def test_sets_of_one_kind_are_rarely_called_different():
    found = [blind_baseline(texts(40, 2 * s), texts(40, 2 * s + 1), seed=s) for s in range(50)]
    assert sum(b.shift for b in found) <= 50 * 0.05 + 2.6 * np.sqrt(50 * 0.05 * 0.95)
    assert np.mean([b.auc.value for b in found]) == pytest.approx(0.5, abs=0.04)
    assert all(b.exchangeable is not b.shift for b in found)
    json.dumps(found[0].as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    "others",
    [texts(60, 1, WORDS[150:]), texts(60, 1, length=(20, 30)), [f"{text} 1987" for text in texts(60, 1)]],
    ids=["other words", "longer", "years"],
)
def test_sets_of_another_kind_are(others):
    found = blind_baseline(texts(60, 0), others)
    assert found.shift and found.auc.low > 0.5 and not found.exchangeable


def test_rows_of_one_person_are_kept_together():
    # Every person has words of their own: known in training, they would give the other rows of that person away.
    def rows(first):
        people = range(first, first + 15)
        lines = [f"{' '.join(texts(1, 100 * p + k))} name{p} name{p}" for p in people for k in range(6)]
        return lines, np.repeat(np.arange(15), 6)

    (forget, people), (holdout, others) = rows(0), rows(15)
    assert blind_baseline(forget, holdout).shift
    grouped = blind_baseline(forget, holdout, groups=(people, others))
    assert not grouped.shift and grouped.auc.method.startswith("stratified bootstrap, groups")


def test_rows_are_read_like_their_texts():
    forget, holdout = texts(20, 0), texts(20, 1)
    plain = blind_baseline(forget, holdout)
    rows = [[{"text": t} for t in side] for side in (forget, holdout)]
    assert blind_baseline(*rows, content=content_of) == plain
    split = [[{"prompt": t[:3], "completion": t[3:]} for t in side] for side in (forget, holdout)]
    assert blind_baseline(*split, content=content_of) == plain
    chats = [[{"messages": [{"role": "user", "content": t}]} for t in side] for side in (forget, holdout)]
    assert blind_baseline(*chats, content=content_of) == plain


def test_features_do_not_depend_on_the_other_texts():
    features = text_features(["one two", "three 4 five"]).toarray()
    np.testing.assert_array_equal(features[1], text_features(["three 4 five"]).toarray()[0])
    assert features[1, -4:].tolist()[:2] == [12, 3] and features[1, -1] == pytest.approx(1 / 12)


def pictures(n, seed, light=0.0):
    rng = np.random.default_rng(seed)
    return list(np.clip(rng.normal(128 + light, 40, (n, 12, 10, 3)), 0, 255).astype(np.uint8))


def test_images_of_one_kind_and_of_another():
    same = [blind_baseline(pictures(30, 2 * s), pictures(30, 2 * s + 1), seed=s).shift for s in range(25)]
    assert sum(same) <= 25 * 0.05 + 2.6 * np.sqrt(25 * 0.05 * 0.95)
    brighter = blind_baseline(pictures(30, 0), pictures(30, 1, light=10))
    assert brighter.shift and brighter.features == "image"


def test_pil_images_and_rows_are_read_like_arrays():
    images = pictures(3, 0)
    expected = image_features(images)
    np.testing.assert_array_equal(image_features([Image.fromarray(image) for image in images]), expected)
    np.testing.assert_array_equal(image_features([content_of({"image": image}) for image in images]), expected)
    grey = np.arange(35.0).reshape(5, 7)
    numbers = image_features([grey])[0]
    assert numbers[:3] == pytest.approx([17] * 3) and numbers[3] == pytest.approx(grey.std())
    assert len(numbers) == 6 + 48


def test_another_class_of_digits_is_another_kind():
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The file is sorted by who wrote: its beginning and its end are of different kinds, which is found as well.
    order = np.random.default_rng(0).permutation(len(digits.target))
    of = {label: list(digits.images[order][digits.target[order] == label]) for label in (3, 5)}
    assert blind_baseline(of[3][:60], of[5][:60]).shift
    assert not blind_baseline(of[3][:60], of[3][60:120]).shift


def test_too_few_records_are_no_answer():
    found = blind_baseline(texts(9, 0), texts(50, 1))
    assert found.shift is None and found.exchangeable is None and np.isnan(found.auc.value)
    assert "fewer than 10 records" in found.reason
    assert blind_baseline([], texts(50, 1)).shift is None
    people = (np.repeat(np.arange(5), 4), np.repeat(np.arange(20), 1))
    assert "groups" in blind_baseline(texts(20, 0), texts(20, 1), groups=people).reason


def test_errors_hold_no_text():
    with pytest.raises(ValueError, match="Record 1 holds no text") as error:
        text_features([content_of(record) for record in ("fine", {"secret": "Ada"})])
    assert "Ada" not in str(error.value) and "secret" not in str(error.value)
    with pytest.raises(ValueError, match="one label for each record|label for each record"):
        blind_baseline(texts(20, 0), texts(20, 1), groups=(np.zeros(3), np.zeros(20)))
