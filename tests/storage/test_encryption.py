"""What a key opens, and what it does not; equal contents have equal digests."""

import hashlib
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.storage.digest import add_tensor, add_texts, digest_of_text
from hf_unlearn.storage.encryption import decrypted, encrypted, key_of_content


KEY = key_of_content(b"content", "domain")


@given(plain=st.binary())
def test_what_was_encrypted_comes_back_and_is_never_encrypted_twice_alike(plain):
    first, second = (b"".join(encrypted(plain, KEY, "domain")) for _ in range(2))
    assert first != second and decrypted(first, KEY, "domain") == decrypted(second, KEY, "domain") == plain


@pytest.mark.parametrize(
    ("key", "domain"),
    [
        (replace(KEY, name="0" * 64), "domain"),
        (replace(KEY, secret=b"0" * 32), "domain"),
        (key_of_content(b"other", "domain"), "domain"),
        (KEY, "another"),
    ],
)
def test_nothing_else_opens_it(key, domain):
    with pytest.raises(Exception):  # noqa: B017 - of any type
        decrypted(b"".join(encrypted(b"plain", KEY, "domain")), key, domain)


def test_the_key_of_a_content_is_the_same_in_every_process_and_in_no_other_domain():
    # Fixed: caches that exist must stay readable.
    assert KEY.name == "380adc6757e2dd85f3e0a9fcb95c4dae0c82e3effe24d652de0dd7d118c91752"
    assert KEY.secret.hex() == "6f8e4654c30b104339fa5d3f6eef7e1339242e643c011ed64801ad121206a241"
    assert KEY.secret.hex() not in repr(KEY) and repr(KEY.secret) not in repr(KEY)
    assert len({key_of_content(c, d).name for c in (b"content", b"other") for d in ("domain", "another")}) == 4


TEXTS = st.lists(st.text(st.characters(codec="utf-8")))


@given(TEXTS, TEXTS)
def test_sequences_of_texts_are_taken_for_no_other(one, other):
    digests = []
    for texts in (one, other):
        digests.append(hashlib.sha256())
        add_texts(digests[-1], *texts)
    assert (digests[0].digest() == digests[1].digest()) == (one == other)


@pytest.mark.parametrize(
    "other",
    [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2), torch.zeros(6), -torch.zeros(2, 3)],
    ids=["type", "shape", "dimensions", "sign"],
)
def test_tensors_differ_by_type_shape_and_bits(other):
    digests = []
    for tensor in (torch.zeros(2, 3), torch.zeros(3, 2).T, other):
        digests.append(hashlib.sha256())
        add_tensor(digests[-1], tensor)
    first, transposed, last = (digest.digest() for digest in digests)
    assert first == transposed != last


def test_a_text_is_the_same_whatever_its_whitespace_and_the_form_of_its_letters():
    assert digest_of_text("Jos\u00e9  lives\nhere ") == digest_of_text(" Jose\u0301 lives here")
    assert (
        len({digest_of_text("a", "b"), digest_of_text("ab"), digest_of_text("a\x1fb"), digest_of_text("a", "c")}) == 4
    )
    assert digest_of_text("", None, " \n") is None and digest_of_text("\ud800") is not None
