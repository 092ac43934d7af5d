"""Against whom a model is tested, and by what means: the audits beyond the table of likelihoods.

Each audit is a function of one model, or of a model and the original, and returns values a record, so that the same
records are compared under the original, the unlearned and the retrained model. Every model gets the same data, seeds and
budget: a retrained model relearns, leaks and is guided too, and only the difference says something.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_unlearn.audit.measures.extraction import (
    exact_memorization,
    extraction_probability,
    extraction_strength,
    queries_needed,
)
from hf_unlearn.audit.measures.prefixes import prefix_curve
from hf_unlearn.audit.measures.quality import answer_probability
from hf_unlearn.audit.measures.statistic import UTILITY, Groups, Statistic
from hf_unlearn.audit.records import Curve, Found, Subjects, picked
from hf_unlearn.audit.table.scores import Scores


# The largest value of the distances that have one.
FARTHEST = {"js": math.log(2), "tv": 1.0, "top1_agreement": 1.0, "top5_agreement": 1.0}
# Shares of an answer that are given, and samples (top-k 40, chance of one half) that are drawn.
GIVEN = (0.0, 0.25, 0.5, 0.75)
SAMPLES = (1, 10, 100, 1_000, 10_000)
# Records or persons a side below which a probe has nothing to learn from.
MIN_PROBED = 10


# What is read from the table of the forget set after an attack: for a label its probability and whether it is right.
def _metrics(subjects: Subjects) -> dict[str, Callable[[Scores], np.ndarray]]:
    if subjects.of_images:
        return {"accuracy": exact_memorization, "answer_probability": answer_probability}
    return {"extraction_strength": extraction_strength, "answer_probability": answer_probability}


def by_effort(model, subjects: Subjects) -> Found:
    """How much comes out with how much effort: of the answer given beforehand, or of samples. Read from the table."""
    if subjects.of_images:
        return Found()
    table = subjects.tables["forget"]
    rest = np.where(table.valid, prefix_curve(table, fractions=GIVEN).T, np.nan)
    needed = np.where(table.valid, queries_needed(extraction_probability(table, top_k=40), p=0.5), np.nan)
    drawn = np.array([np.where(np.isnan(needed), np.nan, needed <= n) for n in SAMPLES])
    return Found(
        curves={
            Curve("rest comes out after a part was given", "forget", "share given", GIVEN, kind="rate"): rest,
            Curve("comes out in so many samples", "forget", "samples", SAMPLES, kind="rate"): drawn,
        }
    )


_NOT_ASKED = {"prompt": "", "completion": ""}


def asked_otherwise(model, subjects: Subjects) -> Found:
    """Other prompts for the same answers, and alternatives to the answers where the rows have them."""
    from hf_unlearn.audit.attacks.leakage import alternative_leakage, span_leakage
    from hf_unlearn.audit.attacks.prompts import attack_prompts, over_prompts

    if subjects.of_images or not subjects.has_column("prompt"):
        return Found()
    found, config = Found(), subjects.config
    rows = list(subjects.rows("forget"))
    examples = [row for row in list(subjects.rows("retain"))[:3] if row.get("prompt") is not None]
    asked = attack_prompts(rows, examples)
    # What was asked plainly is in the table of the forget set: no text goes through the model twice.
    del asked["plain"]
    prompted = [row for of_prompt in asked.values() for row in of_prompt]
    # One pass for all prompts. What cannot be asked so, or does not fit the context, keeps its place and is not scored.
    table = subjects.score(model, [row if subjects.fits(model, row) else _NOT_ASKED for row in prompted])
    plain, chosen = subjects.tables["forget"], subjects.chosen("forget")
    for name, metric in _metrics(subjects).items():
        under = np.where(table.valid, metric(table), np.nan).reshape(-1, len(rows))
        under = np.vstack([np.where(plain.valid, metric(plain), np.nan)[chosen], under])
        for how in ("max", "mean"):
            found.values[subjects.memory(f"{name}_{how}_over_prompts", "paraphrase")] = over_prompts(under, how)
    if subjects.has_column("alternatives"):
        leaked = alternative_leakage(model, subjects.processing_class, rows, batch_size=config.batch_size)
        found.values[subjects.memory("alternative_answer_probability", "paraphrase")] = leaked
    for column in ("spans", "alternatives"):
        if subjects.has_column(column):
            hits = span_leakage(model, subjects.processing_class, rows, column, config.n_samples, seed=config.seed)
            statistic = subjects.memory(f"{column}_in_{config.n_samples}_samples", "sampled", "rate")
            seen = hits.samples_normalized
            found.values[statistic] = np.where(np.isnan(seen), np.nan, seen > 0)
    return found


def generated(model, subjects: Subjects) -> Found:
    """ROUGE-L recall of the greedy answer, on forget and retain set."""
    from hf_unlearn.audit.measures.text_overlap import answer_rouge

    found = Found()
    if subjects.of_images or not subjects.has_column("prompt"):
        return found
    for name, surface in (("forget", "knowledge"), ("retain", None)):
        rows = subjects.rows(name)
        if len(rows):
            values = answer_rouge(
                model,
                subjects.processing_class,
                list(rows),
                subjects.longest_answer(list(rows)),
                batch_size=subjects.config.batch_size,
            )
            utility = Statistic("rouge_l_recall", name, UTILITY)
            found.values[subjects.memory("rouge_l_recall", surface) if surface else utility] = values
    return found


def in_the_layers(model, subjects: Subjects) -> Found:
    """What the layers hold: the logit lens, and a linear probe that tells the forget set from the holdout."""
    from hf_unlearn.audit.attacks.probing import layer_probe, logit_lens

    found, config = Found(), subjects.config
    forget, holdout = subjects.rows("forget"), subjects.rows("holdout")
    lens = logit_lens(model, subjects.processing_class, forget, config.batch_size, **subjects.lengths)
    # The last layer is the answer of the model, which the table has; what an earlier one knows may be hidden after it.
    statistic = subjects.memory("logit_lens_best_earlier_layer", "latent")
    found.values[statistic] = lens.hit_rate[:-1].max(axis=0)
    layers = tuple(range(len(lens.hit_rate)))
    found.curves[Curve("logit lens, share of targets", "forget", "layer", layers)] = lens.hit_rate
    groups = subjects.groups or Groups(list(range(len(forget))), list(range(len(holdout))))
    if min(len(set(groups.forget)), len(set(groups.holdout))) >= MIN_PROBED:
        told = layer_probe(
            model,
            subjects.processing_class,
            [*forget, *holdout],
            labels=np.repeat([1, 0], [len(forget), len(holdout)]),
            groups=[f"{name} {label}" for name, of in vars(groups).items() for label in of],
            batch_size=config.batch_size,
            seed=config.seed,
            **subjects.lengths,
        )
        correct = told.correct[int(np.argmax(np.nan_to_num(told.accuracy)))]
        # Who is said to be of the forget set: the AUC of yes and no is the balanced accuracy.
        statistic = replace(
            subjects.memory("probe_forget_or_holdout", "latent", "auc"),
            set="forget against holdout",
            others=subjects.records(name="holdout"),
        )
        found.values[statistic] = (correct[: len(forget)], 1 - correct[len(forget) :])
    return found


def after_weight_attacks(model, subjects: Subjects) -> Found:
    """The forget set after the weights were quantized, pruned or disturbed, which can bring back what an edit hid."""
    from hf_unlearn.audit.attacks.quantization import WEIGHT_ATTACKS

    found, rows = Found(), subjects.rows("forget")
    for name in subjects.config.weight_attacks:
        attacked = WEIGHT_ATTACKS[name](model)
        table = subjects.score(attacked, rows)
        for metric, of in _metrics(subjects).items():
            found.values[subjects.memory(f"{metric}_{name}", "quantised")] = of(table)
        del attacked
    return found


def after_relearning(model, subjects: Subjects) -> Found:
    """The forget set in the course of training on other rows, or on the other half of it.

    Protocols: `related` trains on as many rows of the retain set, `half` on one half of the forget set to recover the
    other, `unrelated` on the set of that name, where there is one.
    """
    from hf_unlearn.audit.attacks.relearning import relearn_grid, split_in_half, strongest

    found, config = Found(), subjects.config
    forget = subjects.rows("forget")
    everything = list(range(len(forget)))
    # What is trained on, and which of the forget rows it may bring back.
    protocols: dict[str, tuple[Any, list[int]]] = {}
    for protocol, name in (("related", "retain"), ("unrelated", "unrelated")):
        if len(rows := subjects.rows(name)):
            protocols[protocol] = (picked(rows, range(min(len(rows), len(forget)))), everything)
    people = everything if subjects.groups is None else subjects.groups.forget
    if len(set(people)) >= 2:
        half, other = split_in_half(everything, people, config.seed)
        protocols["half"] = (picked(forget, half), other)
    for protocol, (train, recovered) in protocols.items():
        train = subjects.trainable(train)
        if not len(train):
            continue
        runs = relearn_grid(
            model,
            subjects.processing_class,
            train,
            {"forget": picked(forget, recovered)},
            config.relearning_rates,
            config.relearning_steps,
            config.relearning_batch_size,
            seed=config.seed,
            score_batch_size=config.batch_size,
            max_length=config.max_length,
            truncate=config.truncate,
        )
        for metric, of in _metrics(subjects).items():
            # One learning rate is no attack: the one that brings back most counts, for each model.
            best = strongest(runs, of)
            curve = Curve(f"relearning from {protocol}, {metric}", "forget", "steps", tuple(best.steps))
            found.curves[curve] = best.values(of)
            statistic = subjects.memory(f"{metric}_relearned_from_{protocol}", "relearn", records=recovered)
            found.values[statistic] = best.area(of)
    return found


def guided(before, after, subjects: Subjects) -> Found:
    """An adversary with the model before and after adds up what changed: how much more comes out than from the original.

    What the original gives away by itself this adversary has anyway, so only the gain counts. The retrained model beside
    the original is the yardstick.
    """
    from hf_unlearn.audit.attacks.guidance import guided_extraction

    if subjects.of_images:
        return Found()
    config, rows = subjects.config, subjects.rows("forget")
    weights = tuple(sorted({*config.guidance_weights, 1.0}))
    result = guided_extraction(
        before,
        after,
        subjects.processing_class,
        rows,
        weights=weights,
        batch_size=config.batch_size,
        **subjects.lengths,
    )
    found, strength = Found(), result.extraction_strength
    statistic = subjects.memory("extraction_strength_gained_by_guidance", "two-checkpoint")
    found.values[statistic] = np.max(strength, axis=0) - strength[weights.index(1.0)]
    curve = Curve("guidance, extraction strength", "forget", "weight", weights)
    found.curves[curve] = strength
    return found


def read_off_the_weights(before, after, subjects: Subjects) -> Found:
    """Images of the forget set from the difference of the weights, which publishing both checkpoints gives away."""
    from hf_unlearn.audit.attacks.reconstruction import reconstruction_audit

    if not subjects.of_images:
        return Found()
    retain, non_members = (subjects.rows(name) for name in ("retain", "holdout"))
    return Found(
        reconstruction=reconstruction_audit(
            before,
            after,
            subjects.rows("forget"),
            subjects.processing_class,
            retain if len(retain) else None,
            non_members if len(non_members) else None,
        )
    )


def distance_to_retrained(model, retrained, subjects: Subjects) -> Found:
    """Output stability: how far the predictions are from those of the retrained model, on every set."""
    from hf_unlearn.audit.attacks.stability import distances

    found, config = Found(), subjects.config
    for name in ("forget", "retain", "holdout"):
        rows = subjects.rows(name)
        if not len(rows):
            continue
        for distance, values in distances(
            model, retrained, subjects.processing_class, rows, config.batch_size, **subjects.lengths
        ).items():
            direction = "1 = as retrained" if distance.endswith("agreement") else "0 = as retrained"
            records = subjects.records() if name == "forget" else None
            statistic = Statistic(
                f"{distance}_to_retrained",
                name,
                direction,
                records=records,
                bounds=(0.0, FARTHEST.get(distance, math.inf)),
            )
            found.values[statistic] = values
    return found


def depth_of_unlearning(original, model, retrained, subjects: Subjects) -> Found:
    """In how many layers the states lack what the original has, as those of the retrained model do."""
    from hf_unlearn.audit.attacks.patching import patching_depth

    found, config = Found(), subjects.config
    rows = subjects.rows("forget")
    depth = patching_depth(
        original, model, retrained, subjects.processing_class, rows, config.batch_size, **subjects.lengths
    ).depth
    statistic = Statistic("patching_depth", "forget", "1 = as deep as retraining", records=subjects.records())
    found.values[statistic] = depth
    return found


def like_untrained(model, subjects: Subjects) -> Found:
    """How alike a classifier is to a network that knows nothing (ZRF), which the retrained model is not either."""
    from hf_unlearn.audit.attacks.stability import zrf

    if not subjects.of_images:
        return Found()
    rows, config = subjects.rows("forget"), subjects.config
    values = zrf(model, subjects.processing_class, rows, config.batch_size, seed=config.seed)
    direction = "as retrained is best; 1 = like an untrained network"
    return Found({Statistic("zrf", "forget", direction, records=subjects.records()): values})


#: What an adversary can do -> the audits of one model that follow from it; the table of likelihoods is always made.
ONE_MODEL: dict[str, tuple[Callable[[Any, Subjects], Found], ...]] = {
    "extraction": (by_effort, asked_otherwise, generated),
    "membership": (),
    "latent": (in_the_layers, after_weight_attacks),
    "relearning": (after_relearning,),
    "both_checkpoints": (),
}
#: ... and of the original beside another model.
TWO_MODELS: dict[str, tuple[Callable[[Any, Any, Subjects], Found], ...]] = {
    "both_checkpoints": (guided, read_off_the_weights)
}
#: Which surfaces a threat model looks at.
SURFACES_OF: dict[str, tuple[str, ...]] = {
    "extraction": ("verbatim", "sampled", "knowledge", "paraphrase"),
    "membership": ("membership", "membership-ref"),
    "latent": ("latent", "quantised"),
    "relearning": ("relearn",),
    "both_checkpoints": ("two-checkpoint", "inversion"),
}
THREATS = tuple(SURFACES_OF)


def check_threats(threats: Sequence[str], models: Sequence[str]) -> None:
    """Find out before hours of work that a threat model is not known, or lacks a model.

    Raises:
        ValueError: with the cause and what to do.
    """
    for threat in threats:
        if threat not in THREATS:
            raise ValueError(f"There is no threat model {threat!r}. There are {', '.join(THREATS)}.")
    if "both_checkpoints" in threats and "original" not in models:
        raise ValueError(
            'You chose the threat model "both_checkpoints", in which an adversary has the original too, but gave no '
            "original. Either give it, or leave the threat model out."
        )
