"""An erasure request in the OpenDSR 1.0 format.

Identities and selectors are personal data. They are written to the request file and nowhere else: `repr`, `str` and
all error messages name keys and rules, never the values given.
"""

import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hf_unlearn.request.selector import check_keys, check_scope, check_text, require
from hf_unlearn.storage.files import write_whole


EXTENSION = "hf-unlearn"
REGULATIONS = ("gdpr", "ccpa")
IDENTITY_TYPES = (
    "controller_customer_id android_advertising_id android_id email fire_advertising_id ios_advertising_id "
    "ios_vendor_id microsoft_advertising_id microsoft_publisher_id roku_publisher_id roku_advertising_id"
).split()
IDENTITY_FORMATS = ("raw", "sha1", "md5", "sha256")

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_VERSION = re.compile(r"\d+(?:\.\d+)*", re.ASCII)


@dataclass(frozen=True, repr=False)
class ErasureRequest:
    """A person's request to erase data, with the OpenDSR 1.0 keys as fields, which are all validated on construction.

    Most users write a request with [`~ErasureRequest.records`], [`~ErasureRequest.of_class`] or
    [`~ErasureRequest.attribute`], or read the one they were sent with [`~ErasureRequest.load`].

    Args:
        regulation (`str`): `"gdpr"` or `"ccpa"`; the specification has no others. Name any other law in
            `extensions["hf-unlearn"]["jurisdiction"]`.
        subject_request_id (`str`): lower-case UUID version 4.
        subject_request_type (`str`): `"erasure"`. Access and portability are refused.
        submitted_time (`str`): when the person asked, in RFC 3339, e.g. `"2026-05-04T09:30:00Z"`.
        extensions (`dict`): objects keyed by processor domain. Ours is `"hf-unlearn"`:
            `{"scope": {"kind": ..., "selector": {...}}, "jurisdiction": "..."}`, where `jurisdiction` is optional and
            the selector depends on the kind:

            - `"record"`: `{"column": "id", "values": [...]}`, `{"column": "text", "mentions": ["Ada Lovelace", ...]}` or
              `{"rows": [0, 5, 7]}`;
            - `"class"`: `{"column": "label", "values": [...]}`, label names or integers;
            - `"attribute"`: `{"column": ..., "operator": ..., "value": ...}`.

            For records and attributes `"columns": [...]` can stand in place of `"column"`: a row is meant if any of them
            says so.

            The objects of other processors are kept as they are.
        subject_identities (`Sequence[dict]`, *optional*, defaults to `()`): objects
            `{identity_type, identity_value, identity_format}`. The specification requires them unless an extension
            says whom the request is about; here the selector does.
        api_version (`str`, *optional*): e.g. `"1.0"`.
        status_callback_urls (`Sequence[str]`, *optional*, defaults to `()`): `https` addresses without credentials.

    Raises:
        ValueError: a key is missing, is unknown or breaks its rule above. The message names the key and the rule,
            never the value.

    Example:

    ```python
    >>> request = ErasureRequest.records(ids=[17, 42], column="id")
    >>> request.save("request.json")
    >>> ErasureRequest.load("request.json") == request
    True
    ```
    """

    regulation: str
    subject_request_id: str
    subject_request_type: str
    submitted_time: str
    extensions: dict[str, dict[str, Any]]
    subject_identities: Sequence[dict[str, str]] = ()
    api_version: str | None = None
    status_callback_urls: Sequence[str] = ()

    def __post_init__(self):
        require(self.regulation in REGULATIONS, "regulation", f"one of {[*REGULATIONS]}")
        require(_matches(_UUID4, self.subject_request_id), "subject_request_id", "a lower-case UUID version 4")
        if self.subject_request_type in ("access", "portability"):
            raise ValueError(
                f"`subject_request_type` is {self.subject_request_type!r}, but only 'erasure' can be carried out "
                "here. Answer it from the system that holds the data."
            )
        require(self.subject_request_type == "erasure", "subject_request_type", "'erasure'")
        time_rule = "an RFC 3339 time of an existing day with its offset, such as '2026-05-04T09:30:00Z'"
        require(_is_time(self.submitted_time), "submitted_time", time_rule)
        is_version = self.api_version is None or _matches(_VERSION, self.api_version)
        require(is_version, "api_version", "a version such as '1.0'")
        # Private copies in plain JSON types: the caller's lists can change, and what is saved is what is loaded.
        for key in ("extensions", "subject_identities", "status_callback_urls"):
            plain = _plain(key, getattr(self, key))
            object.__setattr__(self, key, tuple(plain) if isinstance(plain, list) else plain)
        _check_identities(self.subject_identities)
        _check_urls(self.status_callback_urls)
        _check_extensions(self.extensions)

    def __repr__(self) -> str:
        return (
            f"ErasureRequest(subject_request_id={self.subject_request_id!r}, regulation={self.regulation!r}, "
            f"kind={self.kind!r})"
        )

    @property
    def kind(self) -> str:
        """`"record"`, `"class"` or `"attribute"`."""
        return self.extensions[EXTENSION]["scope"]["kind"]

    @property
    def selector(self) -> dict[str, Any]:
        """Which rows the request is about; personal data."""
        return self.extensions[EXTENSION]["scope"]["selector"]

    @property
    def jurisdiction(self) -> str | None:
        """The law that our extension names, if any."""
        return self.extensions[EXTENSION].get("jurisdiction")

    @classmethod
    def records(
        cls,
        ids: Iterable | None = None,
        column: str = "id",
        *,
        columns: Iterable[str] | None = None,
        mentions: Iterable[str] | None = None,
        rows: Iterable[int] | None = None,
        **other,
    ) -> "ErasureRequest":
        """Request the rows that are about someone: by an id, by a name that is mentioned, or by their positions.

        Args:
            ids (`Iterable`, *optional*): values of `column`. Numbers select cells of a text column that are spelled like
                them. Of a column of lists, an item must be one of them.
            column (`str`, *optional*, defaults to `"id"`): any column, e.g. the one that names the author.
            columns (`Iterable[str]`, *optional*): several columns in place of `column`; any of them may hold the value.
            mentions (`Iterable[str]`, *optional*): names that the text of the columns mentions, instead of `ids`; of
                the messages of a chat, all that they hold is read. A name counts as whole words, in any letter case and across line
                breaks: `"Ann"` is in `"ANN's house"`, and not in `"Anna"`. Give all forms of the name; at least one
                must occur. In scripts without spaces between words it counts anywhere.
            rows (`Iterable[int]`, *optional*): positions in the training split, from 0, instead of `ids`. They are
                meaningful for one revision of one dataset only.
            other: other fields of the request. `subject_request_id` defaults to a new UUID, `submitted_time` to
                now, `regulation` to `"gdpr"`; `jurisdiction` is put into our extension.

        Example:

        ```python
        >>> ErasureRequest.records(mentions=["Ada Lovelace", "A. Lovelace"], columns=["question", "answer"]).kind
        'record'
        ```
        """
        given = {"values": ids, "mentions": mentions, "rows": rows}
        given = {
            key: _items("ids" if key == "values" else key, value) for key, value in given.items() if value is not None
        }
        if len(given) != 1:
            raise ValueError(
                "Pass either `ids` (with `column`), `mentions` (with `columns`) or `rows`, and only one of them."
            )
        where = {} if rows is not None else _where(column if columns is None else columns)
        return cls._new("record", {**where, **given}, **other)

    @classmethod
    def of_class(cls, column: str, values: Iterable, **other) -> "ErasureRequest":
        """Request every row of the classes in `values`, label names or integers; `other`: see [`~ErasureRequest.records`]."""
        return cls._new("class", {"column": column, "values": _items("values", values)}, **other)

    @classmethod
    def attribute(cls, column: str | Iterable[str], operator: str, value: Any, **other) -> "ErasureRequest":
        """Request every row for which `column operator value` holds.

        Args:
            column (`str` or `Iterable[str]`): a column of text, numbers, booleans, dates or class labels; of several,
                any may hold it, and of a column of lists, any item. A missing value never matches.
            operator (`str`): `==`, `!=`, `in`, `not in`, `<`, `<=`, `>`, `>=`, or `contains` (the text of the
                column contains `value`, letter case included).
            value: what to compare with; a list for `in` and `not in`; a text for `contains`, or a list of which any may
                be contained. Dates are ISO 8601 texts, and numbers are compared with the numbers that a text column
                spells.
            other: see [`~ErasureRequest.records`].
        """
        is_list = operator in ("in", "not in") or (operator == "contains" and not isinstance(value, str))
        value = _items("value", value) if is_list else _item(value)
        return cls._new("attribute", {**_where(column), "operator": operator, "value": value}, **other)

    @classmethod
    def _new(cls, kind: str, selector: dict, jurisdiction: str | None = None, **other) -> "ErasureRequest":
        ours = {"scope": {"kind": kind, "selector": selector}}
        if jurisdiction is not None:
            ours["jurisdiction"] = jurisdiction
        defaults = {
            "regulation": "gdpr",
            "subject_request_id": str(uuid.uuid4()),
            "subject_request_type": "erasure",
            "submitted_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        extensions = {**other.pop("extensions", {}), EXTENSION: ours}
        return cls(**{**defaults, **other}, extensions=extensions)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ErasureRequest":
        """Read the JSON object of a request; unknown keys are an error."""
        required = [field.name for field in fields(cls) if field.default is MISSING]
        check_keys("request", data, required, allowed=[field.name for field in fields(cls)])
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """The request as a JSON object without the optional keys that are not set. It holds personal data."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        return {key: _plain(key, value) for key, value in data.items() if value not in (None, ())}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ErasureRequest":
        """Read a request from a JSON file.

        Raises:
            ValueError: the file is not JSON, repeats a key, or is not a valid request.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_bytes(), object_pairs_hook=_unique))
        except json.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
        except UnicodeDecodeError as error:
            place = f"byte {error.start}"
        except RecursionError:
            place = "nested too deep"
        # Raised out here because the original exceptions carry the whole text of the request.
        raise ValueError(f"The request is not valid JSON ({place}).")

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file, whole or not at all, that only its owner can read; equal requests give equal bytes."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(path, text, mode=0o600)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"The request has the key {key!r} twice in one object. Keep one of them.")
        value[key] = item
    return value


def _plain(key: str, value: Any) -> Any:
    """A copy in plain JSON types."""
    try:
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8"))
    except (TypeError, ValueError, RecursionError):
        pass
    raise ValueError(f"`{key}` must hold JSON only: objects, lists, valid Unicode text, finite numbers, true, false.")


def _item(value: Any) -> Any:
    """NumPy and torch scalars as Python numbers."""
    return value.item() if hasattr(value, "item") else value


def _where(column: str | Iterable[str]) -> dict[str, Any]:
    """The key of a selector that names one column or several."""
    is_several = isinstance(column, Iterable) and not isinstance(column, str)
    return {"columns": list(column)} if is_several else {"column": column}


def _items(name: str, values: Iterable) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"`{name}` must be a list, also for a single value.")
    return [_item(value) for value in values]


def _matches(pattern: re.Pattern, value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_time(value: Any) -> bool:
    try:
        return _matches(_RFC3339, value) and bool(date.fromisoformat(value[:10]))
    except ValueError:  # there is no such day
        return False


def _check_identities(identities: Any) -> None:
    require(isinstance(identities, tuple), "subject_identities", "a list of objects")
    for index, identity in enumerate(identities):
        path = f"subject_identities[{index}]"
        check_keys(path, identity, ("identity_type", "identity_value", "identity_format"))
        require(identity["identity_type"] in IDENTITY_TYPES, f"{path}.identity_type", f"one of {IDENTITY_TYPES}")
        check_text(f"{path}.identity_value", identity["identity_value"])
        is_known = identity["identity_format"] in IDENTITY_FORMATS
        require(is_known, f"{path}.identity_format", f"one of {[*IDENTITY_FORMATS]}")


def _check_urls(urls: Any) -> None:
    require(isinstance(urls, tuple), "status_callback_urls", "a list of addresses")
    for index, url in enumerate(urls):
        try:
            parts = urlsplit(url if isinstance(url, str) else "")
        except ValueError:
            parts = urlsplit("")
        is_safe = parts.scheme == "https" and parts.hostname and "@" not in parts.netloc
        require(is_safe, f"status_callback_urls[{index}]", "an https address without credentials")


def _check_extensions(extensions: Any) -> None:
    if not isinstance(extensions, dict) or EXTENSION not in extensions:
        raise ValueError(
            f"`extensions` must be an object with the key {EXTENSION!r}, whose `scope` says which rows to erase, "
            'e.g. {"scope": {"kind": "record", "selector": {"column": "id", "values": [17]}}}.'
        )
    for domain, extension in extensions.items():
        require(isinstance(extension, dict), f"extensions.{domain}", "an object")
    path, ours = f"extensions.{EXTENSION}", extensions[EXTENSION]
    check_keys(path, ours, ("scope",), allowed=("scope", "jurisdiction"))
    if "jurisdiction" in ours:
        check_text(f"{path}.jurisdiction", ours["jurisdiction"])
    check_scope(f"{path}.scope", ours["scope"])
