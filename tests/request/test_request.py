import copy
import json
import os
import stat
import uuid
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_unlearn.request import ErasureRequest
from hf_unlearn.request.request import IDENTITY_TYPES
from hf_unlearn.request.selector import OPERATORS


SECRET = "jane.doe@example.org"
UUID = "a7551968-d5d6-44b2-9831-815ac9017798"


def valid(**changes):
    """A request with every key, whose personal values all contain SECRET."""
    selector = {"column": "author", "values": [SECRET]}
    data = {
        "regulation": "gdpr",
        "subject_request_id": UUID,
        "subject_request_type": "erasure",
        "submitted_time": "2026-05-04T09:30:00Z",
        "subject_identities": [{"identity_type": "email", "identity_value": SECRET, "identity_format": "raw"}],
        "api_version": "1.0",
        "status_callback_urls": ["https://controller.example/callback"],
        "extensions": {
            "hf-unlearn": {"scope": {"kind": "record", "selector": selector}, "jurisdiction": "PIPL"},
            "processor.example": {"account": SECRET},
        },
    }
    return {**data, **changes}


def scoped(kind, selector):
    return valid(extensions={"hf-unlearn": {"scope": {"kind": kind, "selector": selector}}})


def write(path, data):
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_full_request_is_kept_key_for_key(tmp_path):
    request = ErasureRequest.load(write(tmp_path / "request.json", valid()))
    assert request.to_dict() == valid()
    assert request.kind == "record"
    assert request.selector == {"column": "author", "values": [SECRET]}
    assert request.jurisdiction == "PIPL"


@pytest.mark.parametrize("key", ["subject_identities", "api_version", "status_callback_urls"])
def test_optional_keys_are_optional(key):
    data = valid()
    del data[key]
    assert ErasureRequest.from_dict(data).to_dict() == data


def test_constructors_fill_in_what_the_user_should_not_have_to_know():
    before = datetime.now(timezone.utc) - timedelta(seconds=1)
    request = ErasureRequest.records(ids=[1, 2], column="id")
    submitted = datetime.strptime(request.submitted_time, "%Y-%m-%dT%H:%M:%S%z")
    assert before <= submitted <= datetime.now(timezone.utc)
    assert uuid.UUID(request.subject_request_id).version == 4
    assert request.subject_request_id != ErasureRequest.records(ids=[1, 2]).subject_request_id
    assert (request.regulation, request.subject_request_type) == ("gdpr", "erasure")
    assert request.selector == {"column": "id", "values": [1, 2]}


def test_constructors_write_the_selectors_of_the_format():
    assert ErasureRequest.records(rows=(0, 5)).selector == {"rows": [0, 5]}
    assert ErasureRequest.of_class(column="label", values=["zebra"]).selector == {
        "column": "label",
        "values": ["zebra"],
    }
    request = ErasureRequest.attribute(column="condition", operator="==", value="asthma")
    assert (request.kind, request.selector["operator"], request.selector["value"]) == ("attribute", "==", "asthma")
    assert ErasureRequest.attribute("condition", "in", ("a", "b")).selector["value"] == ["a", "b"]


def test_constructors_take_numpy_values_and_other_fields():
    request = ErasureRequest.records(
        ids=np.array([3, 4]),
        subject_request_id=UUID,
        submitted_time="2026-05-04T09:30:00+02:00",
        regulation="ccpa",
        jurisdiction="LGPD",
        extensions={"processor.example": {"account": 7}},
    )
    assert request.selector["values"] == [3, 4]
    assert type(request.selector["values"][0]) is int
    assert (request.subject_request_id, request.regulation, request.jurisdiction) == (UUID, "ccpa", "LGPD")
    assert request.extensions["processor.example"] == {"account": 7}


def test_constructors_of_requests_for_a_person():
    names, both = ["Ada Lovelace", "A. Lovelace"], ["question", "answer"]
    mentioned = ErasureRequest.records(mentions=names, columns=both)
    assert (mentioned.kind, mentioned.selector) == ("record", {"columns": both, "mentions": names})
    assert ErasureRequest.records(mentions=names, column="text").selector == {"column": "text", "mentions": names}
    assert ErasureRequest.records([7], columns=both).selector == {"columns": both, "values": [7]}
    contained = ErasureRequest.attribute(both, "contains", names)
    assert contained.selector == {"columns": both, "operator": "contains", "value": names}
    with pytest.raises(ValueError, match="`mentions` must be a list"):
        ErasureRequest.records(mentions="Ada", column="text")


@pytest.mark.parametrize("arguments", [{}, {"ids": [1], "rows": [1]}, {"ids": [1], "mentions": ["Ada"]}])
def test_records_wants_ids_or_rows(arguments):
    with pytest.raises(ValueError, match="either `ids`"):
        ErasureRequest.records(**arguments)


def test_one_text_is_not_a_list_of_ids():
    with pytest.raises(ValueError, match="`ids` must be a list") as error:
        ErasureRequest.records(ids=SECRET)
    assert SECRET not in str(error.value)


def test_the_callers_objects_stay_the_callers():
    data = valid()
    request = ErasureRequest.from_dict(data)
    data["extensions"]["hf-unlearn"]["scope"]["selector"]["values"].append("other")
    request.to_dict()["subject_identities"][0]["identity_value"] = "other"
    assert request.to_dict() == valid()


# What is refused


@pytest.mark.parametrize("key", ["regulation", "subject_request_id", "subject_request_type", "submitted_time"])
def test_required_keys_are_required(key):
    data = valid()
    del data[key]
    with pytest.raises(ValueError, match=f"lacks the key '{key}'"):
        ErasureRequest.from_dict(data)


def test_an_unknown_key_is_named_with_the_allowed_ones():
    with pytest.raises(ValueError, match="unknown key 'scope'.*'subject_request_id'.*'extensions'"):
        ErasureRequest.from_dict(valid(scope={}))


@pytest.mark.parametrize("kind", ["access", "portability"])
def test_other_rights_are_refused_with_what_to_do(kind):
    with pytest.raises(ValueError, match=f"'{kind}', but only 'erasure'.*Answer it from"):
        ErasureRequest.from_dict(valid(subject_request_type=kind))


@pytest.mark.parametrize(
    "request_id",
    [
        UUID.upper(),
        UUID.replace("-", ""),
        UUID + "\n",
        "{" + UUID + "}",
        "a7551968-d5d6-14b2-9831-815ac9017798",  # version 1
        "a7551968-d5d6-44b2-7831-815ac9017798",  # not the RFC 4122 variant
        12,
        None,
    ],
)
def test_request_id_must_be_a_lower_case_uuid4(request_id):
    with pytest.raises(ValueError, match="`subject_request_id`"):
        ErasureRequest.from_dict(valid(subject_request_id=request_id))


@pytest.mark.parametrize(
    "time",
    ["2026-05-04T09:30:00Z", "2026-05-04t09:30:00.123456789z", "2016-12-31T23:59:60Z", "2024-02-29T00:00:00-23:59"],
)
def test_rfc3339_times_are_accepted(time):
    assert ErasureRequest.from_dict(valid(submitted_time=time)).submitted_time == time


@pytest.mark.parametrize(
    "time",
    [
        "2026-05-04T09:30:00",
        "2026-05-04",
        "2026-05-04T24:00:00Z",
        "2026-05-04T09:30:61Z",
        "2026-05-04T09:30:00+24:00",
        "2026-05-04T09:30:00+0200",
        "2026-05-04T09:30:00.Z",
        "2026-05-04T09:30:00Z\n",
        "2025-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-05-04T0٩:30:00Z",
        1777887000,
        None,
    ],
)
def test_other_times_are_refused(time):
    with pytest.raises(ValueError, match="`submitted_time` must be an RFC 3339"):
        ErasureRequest.from_dict(valid(submitted_time=time))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"regulation": "pipl"}, "regulation"),
        ({"regulation": ["gdpr"]}, "regulation"),
        ({"api_version": 1.0}, "api_version"),
        ({"api_version": "latest"}, "api_version"),
        ({"subject_identities": SECRET}, "subject_identities"),
        ({"subject_identities": [SECRET]}, r"subject_identities\[0\]"),
        ({"subject_identities": [{"identity_type": "email", "identity_value": SECRET}]}, "identity_format"),
        ({"status_callback_urls": "https://a.example"}, "status_callback_urls"),
        ({"status_callback_urls": ["http://a.example"]}, r"status_callback_urls\[0\]"),
        ({"status_callback_urls": [f"https://{SECRET}@a.example"]}, r"status_callback_urls\[0\]"),
        ({"status_callback_urls": ["https://["]}, r"status_callback_urls\[0\]"),
        ({"extensions": {}}, "extensions"),
        ({"extensions": [SECRET]}, "extensions"),
        ({"extensions": {**valid()["extensions"], "processor.example": SECRET}}, "processor.example"),
        ({"extensions": {"hf-unlearn": {}}}, "scope"),
        ({"extensions": {"hf-unlearn": {"scope": SECRET}}}, "scope"),
    ],
)
def test_wrong_values_name_the_key_and_not_the_value(changes, key):
    with pytest.raises(ValueError, match=key) as error:
        ErasureRequest.from_dict(valid(**changes))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("field", ["identity_type", "identity_value", "identity_format"])
@pytest.mark.parametrize("value", [SECRET, "", None, 5, [SECRET]])
def test_identities_are_checked(field, value):
    if (field, value) == ("identity_value", SECRET):
        value = {"value": SECRET}
    identity = {**valid()["subject_identities"][0], field: value}
    with pytest.raises(ValueError, match=rf"subject_identities\[1\].{field}") as error:
        ErasureRequest.from_dict(valid(subject_identities=[*valid()["subject_identities"], identity]))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "selector", "key"),
    [
        ("subject", {"column": "author", "values": [SECRET]}, "kind"),
        ("record", [SECRET], "selector"),
        ("record", {"column": "author"}, "values"),
        ("record", {"column": "author", "values": []}, "values"),
        ("record", {"column": "author", "values": SECRET}, "values"),
        ("record", {"column": "author", "values": [None]}, "values"),
        ("record", {"column": "author", "values": [[SECRET]]}, "values"),
        ("record", {"column": "author", "values": [SECRET, 1]}, "values"),
        ("record", {"column": "author", "values": [True, 1]}, "values"),
        ("record", {"column": "", "values": [SECRET]}, "column"),
        ("record", {"column": 3, "values": [SECRET]}, "column"),
        ("record", {"column": "author", "values": [SECRET], "rows": [1]}, "unknown key 'column'"),
        ("record", {"rows": [-1]}, "rows"),
        ("record", {"rows": [True]}, "rows"),
        ("record", {"rows": [1.0]}, "rows"),
        ("record", {"rows": [SECRET]}, "rows"),
        ("class", {"rows": [1]}, "rows"),
        ("attribute", {"column": "c", "operator": "~", "value": SECRET}, "operator"),
        ("attribute", {"column": "c", "operator": "==", "value": [SECRET]}, "value"),
        ("attribute", {"column": "c", "operator": "in", "value": SECRET}, "value"),
        ("attribute", {"column": "c", "operator": "==", "value": None}, "value"),
        ("attribute", {"column": "c", "operator": "contains", "value": 4}, "value"),
        ("attribute", {"column": "c", "operator": "contains", "value": ""}, "value"),
        ("attribute", {"column": "c", "operator": "contains", "value": []}, "value"),
        ("attribute", {"column": "c", "operator": "contains", "value": [SECRET, ""]}, "value"),
        ("attribute", {"column": "c", "operator": "contains", "value": [SECRET, 4]}, "value"),
        ("attribute", {"columns": ["c", "d"], "operator": "!=", "value": SECRET}, "operator.*several columns"),
        ("attribute", {"columns": ["c"], "operator": "not in", "value": [SECRET]}, "operator.*several columns"),
        ("attribute", {"columns": ["c"], "column": "c", "operator": "==", "value": SECRET}, "unknown key 'column'"),
        ("attribute", {"column": "c", "mentions": [SECRET]}, "mentions"),
        ("record", {"columns": [], "values": [SECRET]}, "columns"),
        ("record", {"columns": "author", "values": [SECRET]}, "columns"),
        ("record", {"columns": ["author", "author"], "values": [SECRET]}, "columns"),
        ("record", {"columns": ["author", ""], "values": [SECRET]}, "columns"),
        ("record", {"columns": ["author", ["x"]], "values": [SECRET]}, "columns"),
        ("record", {"columns": ["author"], "column": "author", "values": [SECRET]}, "unknown key 'column'"),
        ("record", {"column": "c", "mentions": [SECRET], "values": [SECRET]}, "unknown key 'values'"),
        ("record", {"column": "c", "mentions": SECRET}, "mentions"),
        ("record", {"column": "c", "mentions": []}, "mentions"),
        ("record", {"column": "c", "mentions": [SECRET, " . "]}, "mentions"),
        ("record", {"column": "c", "mentions": [7]}, "mentions"),
        ("class", {"columns": ["c"], "values": [SECRET]}, "columns"),
        ("class", {"column": "c", "mentions": [SECRET]}, "mentions"),
    ],
)
def test_selectors_are_checked(kind, selector, key):
    with pytest.raises(ValueError, match=key) as error:
        ErasureRequest.from_dict(scoped(kind, selector))
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {1, 2}, b"x"])
def test_values_without_a_json_form_are_refused(value):
    with pytest.raises(ValueError, match="`extensions`"):
        ErasureRequest.records(ids=[value])


# Files


def test_saving_is_deterministic_and_private_to_the_owner(tmp_path):
    data = valid()
    reordered = dict(reversed(data.items()))
    reordered["extensions"] = dict(reversed(data["extensions"].items()))
    for name, content in (("a", data), ("b", reordered)):
        ErasureRequest.from_dict(content).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o600


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "request.json"
    ErasureRequest.records(ids=[1]).save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        ErasureRequest.records(ids=[2]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1, column 1"),
        (b'{"regulation": ' + SECRET.encode() + b"}", "line 1, column 16"),
        (b'{"a": "\xff\xfe"}', "byte"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"regulation": "gdpr", "regulation": "ccpa"}', "'regulation' twice"),
        (json.dumps(valid(extensions={"processor.example": {"x": float("nan")}})).encode(), "finite numbers"),
        (b"[1, 2]", "`request` must be an object"),
        (b"9" * 5000, "limit|object"),
    ],
)
def test_files_that_are_not_requests(tmp_path, content, message):
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        ErasureRequest.load(path)
    assert SECRET not in str(error.value)
    # A logger that walks the chain must not find the document either.
    assert error.value.__context__ is None


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
integers = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
value_lists = st.one_of(*(st.lists(kind, min_size=1, max_size=5) for kind in (texts, integers, floats, st.booleans())))
identities = st.fixed_dictionaries(
    {
        "identity_type": st.sampled_from(IDENTITY_TYPES),
        "identity_value": texts,
        "identity_format": st.sampled_from(["raw", "sha1", "md5", "sha256"]),
    }
)


@st.composite
def requests(draw):
    other = {
        "regulation": draw(st.sampled_from(["gdpr", "ccpa"])),
        "subject_identities": draw(st.lists(identities, max_size=3)),
        "subject_request_id": str(draw(st.uuids(version=4))),
        "submitted_time": draw(st.datetimes(timezones=st.just(timezone.utc))).isoformat(),
        "jurisdiction": draw(st.none() | texts),
        "api_version": draw(st.none() | st.just("1.0")),
    }
    kind = draw(st.sampled_from(["record", "rows", "mentions", "class", "attribute"]))
    if kind == "mentions":
        names = draw(st.lists(texts.filter(lambda name: any(map(str.isalnum, name))), min_size=1, max_size=3))
        columns = draw(st.lists(texts, min_size=1, max_size=3, unique=True))
        return ErasureRequest.records(mentions=names, columns=columns, **other)
    if kind == "rows":
        return ErasureRequest.records(rows=draw(st.lists(st.integers(0, 10**6), min_size=1)), **other)
    column, values = draw(texts), draw(value_lists)
    if kind == "record":
        return ErasureRequest.records(ids=values, column=column, **other)
    if kind == "class":
        return ErasureRequest.of_class(column=column, values=values, **other)
    operator = draw(st.sampled_from(OPERATORS))
    value = values if operator in ("in", "not in") else draw(texts) if operator == "contains" else values[0]
    return ErasureRequest.attribute(column=column, operator=operator, value=value, **other)


@given(request=requests())
def test_save_then_load_gives_an_equal_request(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("request") / "request.json"
    request.save(path)
    loaded = ErasureRequest.load(path)
    assert loaded == request
    assert loaded.to_dict() == request.to_dict()
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before


@given(value=st.text("@~#éß☺", min_size=1))
def test_repr_and_str_hold_no_identity_and_no_selector_value(value):
    identity = {"identity_type": "email", "identity_value": value, "identity_format": "raw"}
    for request in (
        ErasureRequest.records(ids=[value], subject_identities=[identity]),
        ErasureRequest.of_class(column="label", values=[value]),
        ErasureRequest.attribute(column="label", operator="contains", value=value),
        ErasureRequest.records(ids=[1], extensions={"processor.example": {"account": value}}),
    ):
        assert value not in f"{request} {request!r} {[request]}"
    assert request.subject_request_id in repr(request)


anything = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | st.text(max_size=8) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def paths(value, prefix=()):
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*prefix, key))


@given(path=st.sampled_from(list(paths(valid()))), replacement=anything)
def test_a_replaced_part_gives_a_value_error_naming_the_key_or_a_valid_request(path, replacement):
    data = copy.deepcopy(valid())
    if not path:
        data = replacement
    else:
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = replacement
    try:
        request = ErasureRequest.from_dict(data)
    except ValueError as error:
        top = path[0] if path else "request"
        assert str(top) in str(error)
        assert SECRET not in str(error)
    else:
        assert ErasureRequest.from_dict(request.to_dict()) == request


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_give_a_value_error(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("request") / "request.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="request"):
        ErasureRequest.load(path)
