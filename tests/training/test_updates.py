import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.training.updates import dot, project


VECTOR = st.lists(st.floats(-10, 10), min_size=6, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))


def cut(x):
    return [x[:1], x[1:3].reshape(2, 1), x[3:]]


def joined(xs):
    return torch.cat([x.flatten() for x in xs])


@given(VECTOR, VECTOR)
def test_project_against_flat_vectors(f, r):
    step = joined(project(cut(f), cut(r)))
    conflict = (f @ r).item()
    expected = f - (f @ r) / (r @ r) * r + r if conflict < 0 else f + r
    torch.testing.assert_close(step, expected, rtol=1e-9, atol=1e-9)
    # To first order, the forget part of a descent step does not raise the retain loss.
    assert ((step - r) @ r).item() >= -1e-9 * (1 + (f @ f + r @ r).item())


@given(VECTOR)
def test_project_without_a_retain_gradient_is_the_forget_gradient(f):
    assert torch.equal(joined(project(cut(f), cut(torch.zeros_like(f)))), f)


def test_project_removes_all_of_an_opposite_gradient():
    r = torch.tensor([3.0, 4.0])
    assert torch.allclose(project([-2 * r], [r])[0], r)


def test_dot_accumulates_in_float64():
    # 1e8 + 1 - 1e8 is 0 in float32.
    x = torch.tensor([1e4, 1.0, 1e4])
    y = torch.tensor([1e4, 1.0, -1e4])
    assert dot([x], [y]).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_project_keeps_the_dtype(dtype):
    assert project([torch.ones(2, dtype=dtype)], [-torch.ones(2, dtype=dtype)])[0].dtype == dtype
