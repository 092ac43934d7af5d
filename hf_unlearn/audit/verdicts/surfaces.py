"""Where erased records may show: the one table of surfaces, which verdicts, threat models and glossary read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Surface:
    """A place where erased records may show.

    Attributes:
        name (`str`): as in a report.
        threat (`str` or `None`): the threat model that looks there; `None` if there is no test yet.
        meaning (`str`): what a trace there means, in one plain sentence.
        needs (`str`): what there must be for a test of it, beside a forget set.
        margin (`str` or `None`): the kind of margin for all its statistics; by default each has that of its own kind.
        beside_original (`bool`): the adversary has the original model as well. A retrained model beside it reveals the
            records too, so only more than that is a trace.
        tells_apart (`bool`): a retrained model that tells forget set and holdout apart there has seen the forget set.
    """

    name: str
    threat: str | None
    meaning: str
    needs: str = "nothing else"
    margin: str | None = None
    beside_original: bool = False
    tells_apart: bool = False


_TABLE = (
    Surface(
        "verbatim", "extraction", "The model continues the beginning of a record word for word.", "a language model"
    ),
    Surface(
        "sampled",
        "extraction",
        "A record comes up when the model is asked many times and answers at random. Where the rows mark parts of a record, "
        "such as names or numbers, the test looks for these as well.",
        "a language model",
    ),
    Surface(
        "knowledge",
        "extraction",
        "The model finds the true answer more probable, or gets more of it right, than a model that never saw the record, "
        "even if it does not repeat it word for word.",
    ),
    Surface(
        "paraphrase",
        "extraction",
        "The model knows more of the answer than a model that never saw the record when the question, or the answer, is "
        "put in other words.",
        "a language model, and rows of questions and answers (pairs or chats)",
    ),
    Surface(
        "membership",
        "membership",
        "From the probabilities that the model gives to records, an adversary can tell those that it was trained on from "
        "similar ones that it never saw.",
        "a holdout",
        tells_apart=True,
    ),
    Surface(
        "membership-ref",
        "membership",
        "An adversary who has other models to compare with can tell the same. This is tested only if there are several "
        "retrained models.",
        "a holdout and several retrained models",
        tells_apart=True,
    ),
    Surface(
        "latent",
        "latent",
        "The layers inside the model still hold the records, whatever it answers.",
        "a model whose layers are a list",
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
        "The records come back when the weights are rounded to fewer bits, as on small machines, or when they are pruned "
        "or disturbed by noise.",
        "weights that are not quantized",
    ),
    Surface(
        "two-checkpoint",
        "both_checkpoints",
        "An adversary who also has the model from before the erasure learns more from the change than retraining would "
        "have revealed.",
        "the original model",
        beside_original=True,
    ),
    Surface(
        "inversion",
        "both_checkpoints",
        "The change of the weights reveals images of the records.",
        "an image classifier and the original model",
    ),
    Surface(
        "artefacts",
        None,
        "Files that are published with the model, such as logs or the state of the optimizer, contain the records. There is "
        "no test for this yet: check them by hand.",
        "a test, which does not exist yet",
    ),
)
#: By name, in the order of a report.
SURFACES: dict[str, Surface] = {surface.name: surface for surface in _TABLE}
#: The threat models: what an adversary can do.
THREATS: tuple[str, ...] = tuple(dict.fromkeys(s.threat for s in _TABLE if s.threat is not None))


def surfaces_of(threat: str) -> tuple[str, ...]:
    """The names of the surfaces that a threat model looks at."""
    return tuple(surface.name for surface in _TABLE if surface.threat == threat)
