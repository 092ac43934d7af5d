"""What an attack is: a function that returns values per record, and what it declares about itself.

    @attack(surface="relearn", kinds=("text", "image"))
    def relearning(model, records):
        yield Found({records.statistic("answer_probability_relearned", "relearn"): values})

Every model gets the same rows, seeds and budget. A retrained model relearns and leaks too, so only the difference to it
says something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from hf_unlearn.audit.records import AuditRecords, Found
from hf_unlearn.audit.verdicts.surfaces import SURFACES, THREATS


KINDS = ("text", "image")


@dataclass(frozen=True)
class Attack:
    """An attack with what it declares, see [`attack`]."""

    run: Callable[..., Found | Iterable[Found]]
    surface: str | None
    threat: str | None
    kinds: tuple[str, ...]
    beside: tuple[str, ...]
    roles: tuple[str, ...] | None
    requires: tuple[Callable, ...]

    @property
    def name(self) -> str:
        return self.run.__name__

    def obstacle(self, model) -> str | None:
        """Why the attack cannot run on a model of this architecture; `None` where it can."""
        for requirement in self.requires:
            try:
                requirement(model)
            except ValueError as error:
                return str(error)
            except Exception as error:  # an architecture that the requirement did not expect
                return f"the model does not have the parts that it needs ({type(error).__name__})"
        return None

    def found(self, model, records: AuditRecords, **others) -> Iterator[Found]:
        """What the attack finds, part by part: after an error, the parts before it stand."""
        found = self.run(model, records, **others)
        yield from [found] if isinstance(found, Found) else found


#: Every declared attack by its name.
DECLARED: dict[str, Attack] = {}


def attack(
    surface: str | None = None,
    kinds: tuple[str, ...] = ("text",),
    threat: str | None = None,
    beside: tuple[str, ...] = (),
    roles: tuple[str, ...] | None = None,
    requires: tuple[Callable, ...] = (),
) -> Callable[[Callable], Callable]:
    """Declare a function `(model, records, **models beside it)` as an attack of the audit.

    The function returns a [`Found`], or yields several. The audit calls it once per model, in evaluation mode. If it
    raises, its surface is `not_tested`, and what other attacks found stands.

    Args:
        surface (`str`, *optional*): where it looks, one of `SURFACES`; without one its numbers get no verdict.
        kinds (`tuple`, *optional*, defaults to `("text",)`): models it runs on: `"text"` (causal language models),
            `"image"` (image classifiers).
        threat (`str`, *optional*): the threat model it belongs to; by default that of its surface. An attack without either
            runs under all threat models if `AuditConfig.stability` is on and there is a retrained model.
        beside (`tuple`, *optional*): roles of models that it needs beside the attacked one, `"original"` or `"retrained"`;
            it gets them by these names.
        roles (`tuple`, *optional*): the only roles it attacks; by default all but those in `beside`.
        requires (`tuple` of functions, *optional*): each takes a model, possibly without weights (on the device `meta`), and
            raises a `ValueError` if the architecture lacks what the attack needs. They are called before any training.

    Raises:
        ValueError: the surface, the threat or a kind is unknown, or another attack has the name.
    """
    if surface is not None and surface not in SURFACES:
        raise ValueError(f"There is no surface {surface!r}. Give one of {', '.join(SURFACES)}.")
    if surface is not None and threat is None:
        threat = SURFACES[surface].threat
    if threat is not None and threat not in THREATS:
        raise ValueError(f"There is no threat model {threat!r}. Give one of {', '.join(THREATS)}.")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds must be of {', '.join(KINDS)}, not {kinds!r}.")

    def declare(run: Callable) -> Callable:
        known = DECLARED.get(run.__name__)
        if known is not None and known.run.__module__ != run.__module__:
            raise ValueError(
                f"There is an attack {run.__name__!r} already, in {known.run.__module__}. Give yours another name."
            )
        DECLARED[run.__name__] = Attack(run, surface, threat, kinds, beside, roles, requires)
        return run

    return declare
