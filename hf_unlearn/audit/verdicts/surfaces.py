"""Where erased records may show: the one table of surfaces, which verdicts, threat models and glossary read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Surface:
    """A place where erased records may show.

    Attributes:
        name (`str`): as in a report.
        threat (`str` or `None`): the threat model that looks there; `None` where there is no test yet.
        meaning (`str`): what a trace there means, in one plain sentence.
        needs (`str`): what must be given for it to be tested.
        margin (`str` or `None`): the kind of margin that holds for all its statistics; by default that of their own kind.
        beside_original (`bool`): the adversary has the original too, so that a retrained model betrays the records as well:
            only more than that is a trace.
        tells_apart (`bool`): a retrained model that tells forget set and holdout apart there has seen the forget set.
    """

    name: str
    threat: str | None
    meaning: str
    needs: str
    margin: str | None = None
    beside_original: bool = False
    tells_apart: bool = False


_TABLE = (
    Surface(
        "verbatim",
        "extraction",
        "The model continues the beginning of a record word for word.",
        "a language model",
    ),
    Surface(
        "sampled",
        "extraction",
        "A record comes up when the model answers at random and is asked again and again. Where the rows mark parts of a "
        "record, such as names or numbers, these are looked for as well.",
        "a language model",
    ),
    Surface(
        "knowledge",
        "extraction",
        "The model finds the true answer likelier, or gets more of it right, than a model that never saw the record, "
        "even where it does not repeat it word for word.",
        "a forget set",
    ),
    Surface(
        "paraphrase",
        "extraction",
        "The same when the question is put in other words, or the answer may be.",
        "a language model, and rows of prompt and completion",
    ),
    Surface(
        "membership",
        "membership",
        "From the probabilities that the model gives to records, an adversary tells those that were trained on from "
        "similar ones that never were.",
        "a holdout",
        tells_apart=True,
    ),
    Surface(
        "membership-ref",
        "membership",
        "The same for an adversary who has further models to compare with. Tested only where there are several "
        "retrained models.",
        "a holdout and several retrained models",
        tells_apart=True,
    ),
    Surface(
        "latent",
        "latent",
        "The inside of the model, its layers, still holds the records, whatever it answers.",
        "a model whose layers can be looked into",
    ),
    Surface(
        "relearn",
        "relearning",
        "A little more training brings the records back sooner than in a model that never saw them.",
        "rows to train on",
        margin="relearn",
    ),
    Surface(
        "quantised",
        "latent",
        "The records come back when the weights are rounded to fewer bits, thinned out or disturbed, as people do who "
        "run models on small machines.",
        "linear layers that are not quantized already",
    ),
    Surface(
        "two-checkpoint",
        "both_checkpoints",
        "An adversary who has the model from before the erasure as well learns more from what changed than "
        "retraining would have shown.",
        "the original model",
        beside_original=True,
    ),
    Surface(
        "inversion",
        "both_checkpoints",
        "Images of the records can be read off the change of the weights.",
        "an image classifier, and the original model",
    ),
    Surface(
        "artefacts",
        None,
        "Files that are published with the model, such as logs or the state of the optimizer, hold the records. There "
        "is no test of this yet: look at them by hand.",
        "a test, which does not exist yet",
    ),
)
#: By name, in the order of a report.
SURFACES: dict[str, Surface] = {surface.name: surface for surface in _TABLE}
#: What an adversary can do.
THREATS: tuple[str, ...] = tuple(dict.fromkeys(s.threat for s in _TABLE if s.threat is not None))


def surfaces_of(threat: str) -> tuple[str, ...]:
    """The names of the surfaces that a threat model looks at."""
    return tuple(surface.name for surface in _TABLE if surface.threat == threat)
