"""What the layers hold: an edit may hide an answer at the end of a network and leave it intact in earlier layers.

[`logit_lens`] is what the model would answer if it ended after each layer, [`layer_probe`] what a linear classifier reads
from the states of each; `patching` measures how deep the unlearning goes. Compare each with the retrained model: related
text and common sense leave traces in layers that never saw the forget set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from torch import Tensor

from hf_unlearn.audit.attacks.attack import KINDS, attack
from hf_unlearn.audit.measures.statistic import Groups
from hf_unlearn.audit.records import AuditRecords, Curve, Found
from hf_unlearn.audit.table.streaming import (
    by_record,
    encode_examples,
    in_memory,
    inputs_for,
    max_targets,
    n_end_of,
    split_by_row,
    targets_of,
    warn_of_broken,
)
from hf_unlearn.models.blocks import all_blocks, as_tokens, find_blocks, output_replaced, shortened, states_of
from hf_unlearn.models.likelihood import is_image_classifier, log_probs_and_hits, reading_positions, scored_positions
from hf_unlearn.statistics.estimate import known_mean


N_FOLDS = 5
# One draw of random labels may be far from chance, either way, where there are few groups.
N_CONTROLS = 3
# Records or persons on each side below which a probe has nothing to learn from.
MIN_PROBED = 10


@dataclass(frozen=True)
class LensCurve:
    """What the model would answer if it ended after each of its layers, for `layers + 1` states and `n` records.

    Attributes:
        nll (`float64 (layers + 1, n)`): mean negative log-likelihood of a target in nats, end token included; **low = the
            layer knows the answer**.
        hit_rate (`float64 (layers + 1, n)`): share of the targets that are the most likely token, end token left out,
            in [0, 1]; higher = the layer knows the answer.

    The first row is for the embeddings, the last is the answer of the model itself. NaN for a record without targets or
    with NaN logits.
    """

    nll: np.ndarray
    hit_rate: np.ndarray


def logit_lens(
    model, processing_class, examples, batch_size: int = 8, max_length: int | None = None, truncate: bool = False
) -> LensCurve:
    """Read the answer off each layer, by the final norm and the head of the model (nostalgebraist, 2020).

    Only where all blocks have the width that the head reads, which those of a backbone with stages have not. Everything that comes after the last block is run on the state of each layer. Costs two passes of the blocks, and one
    of the head per layer.

    Args:
        model (`PreTrainedModel`, `str` or callable): causal language model or image classifier made of blocks.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].

    Raises:
        ValueError: no blocks are found in the model, or an example cannot be encoded.
    """
    with in_memory(model) as models:
        parent, name = find_blocks(models[0])
        blocks, limit = list(getattr(parent, name)), max_targets(models)
        rows = encode_examples(models, processing_class, examples, max_length, truncate)

        def answers(inputs: dict[str, Tensor]) -> list[np.ndarray]:
            inputs = inputs_for(models[0], inputs)
            states = states_of(models[0], blocks, inputs)
            values = []
            with shortened(parent, name, 1):
                for state in states:
                    with output_replaced(blocks[0], lambda output, state=state: state):
                        values.append(log_probs_and_hits(models[0], inputs, limit))
            owners = scored_positions(inputs["labels"]).nonzero()[:, 0].cpu().numpy()
            return split_by_row(np.stack(values), owners, len(inputs["labels"]))

        found = by_record(models, rows, batch_size, answers, "Looking into the layers")
    n_end = n_end_of(rows)
    nll, hit_rate = np.full((2, len(blocks) + 1, len(found)), np.nan)
    for i, answer in enumerate(found):
        if answer is not None:
            nll[:, i] = -answer[:, 0].mean(-1)
            hit_rate[:, i] = answer[:, 1, : answer.shape[-1] - n_end[i]].mean(-1)
    hit_rate[np.isnan(nll)] = np.nan
    warn_of_broken(nll, rows)
    return LensCurve(nll, hit_rate)


@dataclass(frozen=True)
class LayerProbe:
    """What a linear classifier reads from the states of each layer, for `layers + 1` states and `n` records.

    Attributes:
        accuracy (`float64 (layers + 1,)`): balanced accuracy on records that the classifier was not fitted on, from 0 to
            1; 1 / classes is chance.
        control (`float64 (layers + 1,)`): the same with labels drawn at random, one per group; mean of three draws.
        correct (`float64 (layers + 1, n)`): 1 where the label of a record was predicted rightly, else 0; for the paired
            comparison of models. NaN for a record without targets or with states that are not finite.
    """

    accuracy: np.ndarray
    control: np.ndarray
    correct: np.ndarray


def layer_probe(
    model,
    processing_class,
    examples: Iterable,
    labels: Sequence,
    groups: Sequence | None = None,
    batch_size: int = 8,
    seed: int = 0,
    max_length: int | None = None,
    truncate: bool = False,
) -> LayerProbe:
    """Fit a logistic regression on the states of each layer, and predict the labels of records that it has not seen.

    One pass of the model, from which one vector per record and layer is kept: the mean over the tokens of a text, or the
    class token of an image (the mean over all where the head reads more than that token). The five folds depend only on labels, groups and seed, so that
    models are compared on the same ones.

    Args:
        model (`PreTrainedModel`, `str` or callable): causal language model or image classifier made of blocks.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].
        labels (sequence of `n`): what to tell apart, such as an attribute, or forget set and holdout.
        groups (sequence of `n`, *optional*): the person each record is about. A group is in one fold as a whole: else the
            classifier would recognize the person and not the attribute.
        seed (`int`, *optional*, defaults to `0`): of the folds and the control task.

    Raises:
        ValueError: no blocks are found in the model, labels or groups are not one per record, there are fewer than two
            classes, or a class has fewer groups than there are folds.
    """
    with in_memory(model) as models:
        blocks = all_blocks(models[0])
        rows = encode_examples(models, processing_class, examples, max_length, truncate)
        scorable = np.array([len(targets) > 0 for targets in targets_of(rows)], dtype=bool)
        codes, groups = _checked(labels, groups, scorable)

        def pooled(inputs: dict[str, Tensor]) -> list[list[np.ndarray]]:
            inputs = inputs_for(models[0], inputs)
            states = states_of(models[0], blocks, inputs, partial(_pooled, models[0], inputs))
            return [list(layers) for layers in zip(*(state.cpu().numpy() for state in states), strict=True)]

        found = by_record(models, rows, batch_size, pooled, "Reading the layers")
    # For each layer `(rows, width)`: the stages of a backbone have widths of their own.
    features = [np.stack(layer) for layer in zip(*(states for states in found if states is not None), strict=True)]
    finite = np.logical_and.reduce([np.isfinite(states).all(axis=1) for states in features])
    correct = np.full((len(blocks) + 1, len(rows)), np.nan)
    accuracy, control = np.zeros((2, len(blocks) + 1))
    controls = [_random_labels(codes, groups, seed, draw) for draw in range(N_CONTROLS)]
    for layer, states in enumerate(features):
        correct[layer, scorable] = _predicted_rightly(states, codes, groups, finite, seed)
        accuracy[layer] = _balanced(correct[layer, scorable], codes)
        drawn = [_balanced(_predicted_rightly(states, own, groups, finite, seed), own) for own in controls]
        control[layer] = np.mean(drawn)
    warn_of_broken(correct, rows)
    return LayerProbe(accuracy, control, correct)


def _checked(labels, groups, scorable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes and groups of the records that can be scored, as numbers: two `int64 (m,)`."""
    labels = np.asarray(labels)
    groups = np.arange(len(scorable)) if groups is None else np.asarray(groups)
    if labels.shape != scorable.shape or groups.shape != scorable.shape:
        raise ValueError(
            f"There are {len(scorable)} records, but labels of shape {labels.shape} and groups of shape {groups.shape}. "
            "Give one label and one group per record."
        )
    names, codes = np.unique(labels[scorable], return_inverse=True)
    groups = np.unique(groups[scorable], return_inverse=True)[1]
    if len(names) < 2:
        raise ValueError("All labels are the same, so there is nothing to tell apart. Give records of two classes.")
    fewest = min(len(np.unique(groups[codes == code])) for code in range(len(names)))
    if fewest < N_FOLDS:
        raise ValueError(f"A class has {fewest} groups, but each of {N_FOLDS} folds needs one. Give more records.")
    return codes, groups


def _random_labels(codes: np.ndarray, groups: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """The labels of the groups in another order: each group has one, and they are as frequent as they were."""
    # In groups with several labels each label has its turn, or a class might be left out.
    by_group = [np.sort(codes[groups == group]) for group in range(groups.max() + 1)]
    chosen = np.array([own[k % len(own)] for k, own in enumerate(by_group)])
    return np.random.default_rng([seed, draw]).permutation(chosen)[groups]


def _predicted_rightly(states, codes, groups, finite, seed: int) -> np.ndarray:
    """Whether a classifier that saw no record of its group is right about each record: `float64 (m,)`, NaN = unknown."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed)
    right = np.full(len(codes), np.nan)
    with warnings.catch_warnings():
        # Random labels need not be in every fold.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = list(folds.split(states, codes, groups))
    for train, test in splits:
        train, test = train[finite[train]], test[finite[test]]
        if not len(train) or not len(test):
            continue
        if len(np.unique(codes[train])) == 1:
            right[test] = codes[test] == codes[train[0]]
            continue
        # Balanced, or everything would be assigned to the larger of two sets.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        right[test] = classifier.fit(states[train], codes[train]).predict(states[test]) == codes[test]
    return right


def _balanced(correct: np.ndarray, codes: np.ndarray) -> float:
    """Mean over the classes of the share that was predicted rightly; NaN where nothing is known of a class."""
    return float(np.mean([known_mean(correct[codes == code]) for code in np.unique(codes)]))


def _pooled(model, inputs: dict[str, Tensor], state: Tensor) -> Tensor:
    """One vector for each row: `float32 (rows, width)`."""
    image, state = is_image_classifier(model), as_tokens(state, len(inputs["labels"]))
    kept = reading_positions(model, inputs, state.shape[1]) if image else inputs["attention_mask"].bool()
    kept = kept.to(state.device)
    return state.float().masked_fill(~kept[:, :, None], 0).sum(1) / kept.sum(1, keepdim=True)


def readable_blocks(model) -> None:
    """Raise a `ValueError` unless the head can read the state of every block."""
    find_blocks(
        model, "its head cannot read an answer off each. The probe of the layers and the depth by patching remain"
    )


@attack("latent", KINDS, requires=(readable_blocks,))
def states_of_layers(model, records: AuditRecords) -> Found:
    """The logit lens: what an earlier layer would answer."""
    lens = logit_lens(
        model, records.processing_class, records.rows("forget"), records.config.batch_size, **records.lengths
    )
    layers = tuple(range(len(lens.hit_rate)))
    return Found(
        # The last layer is the answer of the model, which the table has; what an earlier layer knows may be hidden later.
        {records.statistic("logit_lens_best_earlier_layer", "latent"): lens.hit_rate[:-1].max(axis=0)},
        {Curve("logit lens, share of targets", "forget", "layer", layers): lens.hit_rate},
    )


@attack("latent", KINDS, requires=(all_blocks,))
def probe_of_layers(model, records: AuditRecords) -> Found:
    """A linear probe of the layers that tells the forget set from the holdout."""
    config = records.config
    forget, holdout = records.rows("forget"), records.rows("holdout")
    groups = records.groups or Groups(list(range(len(forget))), list(range(len(holdout))))
    if min(len(set(groups.forget)), len(set(groups.holdout))) < MIN_PROBED:
        return Found()
    probe = layer_probe(
        model,
        records.processing_class,
        [*forget, *holdout],
        labels=np.repeat([1, 0], [len(forget), len(holdout)]),
        groups=[f"{name} {label}" for name, labels in vars(groups).items() for label in labels],
        batch_size=config.batch_size,
        seed=config.seed,
        **records.lengths,
    )
    correct = probe.correct[int(np.argmax(np.nan_to_num(probe.accuracy)))]
    # Which records are assigned to the forget set: the AUC of yes and no is the balanced accuracy.
    statistic = replace(
        records.statistic("probe_forget_or_holdout", "latent", "auc"),
        set="forget against holdout",
        others=records.positions(name="holdout"),
    )
    return Found({statistic: (correct[: len(forget)], 1 - correct[len(forget) :])})
