"""What the layers hold: an edit may hide an answer at the end of a network and leave it intact before.

[`logit_lens`] is what the model would answer if it ended after each layer, [`layer_probe`] what a linear classifier reads
from the states of each; `patching` has how deep the unlearning goes. Compare each of them with the retrained model: related
text and common sense leave traces in layers that never saw the forget set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
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
from hf_unlearn.data.images import ImageRows
from hf_unlearn.data.rows import IGNORE_INDEX
from hf_unlearn.models.blocks import find_blocks, output_replaced, shortened, states_of
from hf_unlearn.models.likelihood import (
    is_image_classifier,
    log_probs_and_hits,
    reading_positions,
    scored_positions,
)


POOLS = ("mean", "prompt")
# Of one draw the accuracy is far from chance, either way, where there are few groups.
N_CONTROLS = 3


@dataclass(frozen=True)
class LensCurve:
    """What the model would answer if it ended after each of its layers, for `layers + 1` states and `n` records.

    Attributes:
        nll (`float64 (layers + 1, n)`): mean negative log-likelihood of a target in nats, end token included; **low = the
            layer knows the answer**.
        hit_rate (`float64 (layers + 1, n)`): share of the targets that are the most likely token, end token left out,
            in [0, 1]; higher = the layer knows the answer.

    The first row is of the embeddings, the last is the answer of the model itself. NaN for a record without targets or
    with NaN logits.
    """

    nll: np.ndarray
    hit_rate: np.ndarray


def logit_lens(
    model,
    processing_class,
    examples: Iterable,
    batch_size: int = 8,
    max_length: int | None = None,
    truncate: bool = False,
) -> LensCurve:
    """Read the answer off each layer, by the final norm and the head of the model (nostalgebraist, 2020).

    All that comes after the last block, whatever it is, is run on the state of each layer. Costs two passes of the
    blocks, and one of the head a layer.

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

        def of_batch(inputs: dict[str, Tensor]) -> list[np.ndarray]:
            inputs = inputs_for(models[0], inputs)
            states = states_of(models[0], blocks, inputs)
            values = []
            with shortened(parent, name, 1):
                for state in states:
                    with output_replaced(blocks[0], lambda output, state=state: state):
                        values.append(log_probs_and_hits(models[0], inputs, limit))
            of_row = scored_positions(inputs["labels"]).nonzero()[:, 0].cpu().numpy()
            return split_by_row(np.stack(values), of_row, len(inputs["labels"]))

        found = by_record(models, rows, batch_size, of_batch, "Looking into the layers")
    n_end = n_end_of(rows)
    nll, hit_rate = np.full((2, len(blocks) + 1, len(found)), np.nan)
    for i, of in enumerate(found):
        if of is not None:
            nll[:, i] = -of[:, 0].mean(-1)
            hit_rate[:, i] = of[:, 1, : of.shape[-1] - n_end[i]].mean(-1)
    hit_rate[np.isnan(nll)] = np.nan
    warn_of_broken(nll, rows)
    return LensCurve(nll, hit_rate)


@dataclass(frozen=True)
class LayerProbe:
    """What a linear classifier reads from the states of each layer, for `layers + 1` states and `n` records.

    Attributes:
        accuracy (`float64 (layers + 1,)`): balanced accuracy on records that the classifier was not fitted on, from 0 to
            1; 1 / classes is chance.
        control (`float64 (layers + 1,)`): the same with labels that were drawn at random, one a group; mean of
            three draws.
        correct (`float64 (layers + 1, n)`): 1 where the label of a record was told rightly, 0 where not; for the paired
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
    pool: str = "mean",
    n_folds: int = 5,
    batch_size: int = 8,
    seed: int = 0,
    max_length: int | None = None,
    truncate: bool = False,
) -> LayerProbe:
    """Fit a logistic regression on the states of each layer, and predict the labels of records that it has not seen.

    One pass of the model, from which one vector a record and layer is kept. The folds depend on labels, groups and seed
    alone, so that models are compared on the same ones.

    Args:
        model (`PreTrainedModel`, `str` or callable): causal language model or image classifier made of blocks.
        processing_class, examples, batch_size, max_length, truncate: as for [`score`].
        labels (sequence of `n`): what to tell apart, such as an attribute, or forget set and holdout.
        groups (sequence of `n`, *optional*): whom a record is about. A group is in one fold as a whole: else the
            classifier would recognize the entity and not the attribute.
        pool (`str`, *optional*, defaults to `"mean"`): what stands for a text: `"mean"` over its tokens, or `"prompt"`,
            the last token before the answer. Of an image it is the class token, or the mean where there is none.
        n_folds (`int`, *optional*, defaults to `5`).
        seed (`int`, *optional*, defaults to `0`): of the folds and the control task.

    Raises:
        ValueError: no blocks are found in the model; there is not one label a record, fewer than two classes, or a class in
            fewer groups than there are folds; `pool="prompt"` and a text without a prompt.
    """
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}.")
    with in_memory(model) as models:
        parent, name = find_blocks(models[0])
        blocks = list(getattr(parent, name))
        rows = encode_examples(models, processing_class, examples, max_length, truncate)
        scorable = np.array([len(targets) > 0 for targets in targets_of(rows)], dtype=bool)
        codes, groups = _checked(labels, groups, scorable, n_folds)
        if pool == "prompt" and not isinstance(rows, ImageRows):
            _check_prompts(rows)

        def of_batch(inputs: dict[str, Tensor]) -> np.ndarray:
            inputs = inputs_for(models[0], inputs)
            pooled = states_of(models[0], blocks, inputs, lambda state: _pooled(models[0], inputs, state, pool))
            return torch.stack(pooled, dim=1).cpu().numpy()

        found = by_record(models, rows, batch_size, of_batch, "Reading the layers")
    features = np.stack([of for of in found if of is not None], axis=1)
    finite = np.isfinite(features).all(axis=(0, 2))
    correct = np.full((len(blocks) + 1, len(rows)), np.nan)
    accuracy, control = np.zeros((2, len(blocks) + 1))
    controls = [_random_labels(codes, groups, seed, draw) for draw in range(N_CONTROLS)]
    for layer, states in enumerate(features):
        correct[layer, scorable] = _told_rightly(states, codes, groups, finite, n_folds, seed)
        accuracy[layer] = _balanced(correct[layer, scorable], codes)
        control[layer] = np.mean(
            [_balanced(_told_rightly(states, drawn, groups, finite, n_folds, seed), drawn) for drawn in controls]
        )
    warn_of_broken(correct, rows)
    return LayerProbe(accuracy, control, correct)


def _checked(labels, groups, scorable: np.ndarray, n_folds: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes and groups of the records that can be scored, as numbers: two `int64 (m,)`."""
    labels = np.asarray(labels)
    groups = np.arange(len(scorable)) if groups is None else np.asarray(groups)
    if labels.shape != scorable.shape or groups.shape != scorable.shape:
        raise ValueError(
            f"There are {len(scorable)} records, but labels of shape {labels.shape} and groups of shape {groups.shape}. "
            "Give one of each a record."
        )
    names, codes = np.unique(labels[scorable], return_inverse=True)
    groups = np.unique(groups[scorable], return_inverse=True)[1]
    if len(names) < 2:
        raise ValueError("All labels are the same, so there is nothing to tell apart. Give records of two classes.")
    fewest = min(len(np.unique(groups[codes == code])) for code in range(len(names)))
    if fewest < n_folds:
        raise ValueError(
            f"A class has records in {fewest} groups, but each of {n_folds} folds needs some. Either give more records, or "
            "lower n_folds."
        )
    return codes, groups


def _check_prompts(rows) -> None:
    for index, row in enumerate(rows):
        if row and "input_ids" in row and row["labels"][1] != IGNORE_INDEX:
            raise ValueError(
                f'You set pool="prompt", but example {index} has no prompt: its second token is scored already. Either '
                'set pool="mean", or give rows of {"prompt", "completion"}.'
            )


def _random_labels(codes: np.ndarray, groups: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """The labels of the groups in another order: each group has one, and they are as frequent as they were."""
    # Of a group with several labels each has its turn, or a class might be left out.
    own = [codes[groups == group] for group in range(groups.max() + 1)]
    of_group = np.array([np.sort(of)[k % len(of)] for k, of in enumerate(own)])
    return np.random.default_rng([seed, draw]).permutation(of_group)[groups]


def _told_rightly(states, codes, groups, finite, n_folds: int, seed: int) -> np.ndarray:
    """Whether each record is told rightly by a classifier that saw no record of its group: `float64 (m,)`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    told = np.full(len(codes), np.nan)
    with warnings.catch_warnings():
        # Of random labels, which need not be in every fold.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = list(folds.split(states, codes, groups))
    for train, test in splits:
        train, test = train[finite[train]], test[finite[test]]
        if not len(train) or not len(test):
            continue
        if len(np.unique(codes[train])) == 1:
            told[test] = codes[test] == codes[train[0]]
            continue
        # Balanced, or of a small and a large set everything would be called the large one.
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        told[test] = classifier.fit(states[train], codes[train]).predict(states[test]) == codes[test]
    return told


def _balanced(correct: np.ndarray, codes: np.ndarray) -> float:
    """Mean over the classes of the share that was told rightly; NaN where a class has no record that could be told."""
    known = ~np.isnan(correct)
    shares = [correct[known & (codes == code)] for code in np.unique(codes)]
    return float(np.mean([of.mean() for of in shares])) if all(map(len, shares)) else float("nan")


def _pooled(model, inputs: dict[str, Tensor], state: Tensor, pool: str) -> Tensor:
    """One vector for each row: `float32 (rows, width)`."""
    kept = reading_positions(model, inputs, state.shape[1])
    if not is_image_classifier(model):
        kept = inputs["attention_mask"].bool() if pool == "mean" else kept & (kept.cumsum(-1) == 1)
    kept = kept.to(state.device)
    return state.float().masked_fill(~kept[:, :, None], 0).sum(1) / kept.sum(1, keepdim=True)


# Records or persons on a side below which a probe has nothing to learn from.
MIN_PROBED = 10


@attack("latent", KINDS, requires=(find_blocks,))
def states_of_layers(model, records: AuditRecords) -> Found:
    """The logit lens: what an earlier layer would answer."""
    lens = logit_lens(
        model, records.processing_class, records.rows("forget"), records.config.batch_size, **records.lengths
    )
    layers = tuple(range(len(lens.hit_rate)))
    return Found(
        # The last layer is the answer of the model, which the table has; what an earlier one knows may be hidden after it.
        {records.statistic("logit_lens_best_earlier_layer", "latent"): lens.hit_rate[:-1].max(axis=0)},
        {Curve("logit lens, share of targets", "forget", "layer", layers): lens.hit_rate},
    )


@attack("latent", KINDS, requires=(find_blocks,))
def probe_of_layers(model, records: AuditRecords) -> Found:
    """A linear probe of the layers that tells the forget set from the holdout."""
    config = records.config
    forget, holdout = records.rows("forget"), records.rows("holdout")
    groups = records.groups or Groups(list(range(len(forget))), list(range(len(holdout))))
    if min(len(set(groups.forget)), len(set(groups.holdout))) < MIN_PROBED:
        return Found()
    told = layer_probe(
        model,
        records.processing_class,
        [*forget, *holdout],
        labels=np.repeat([1, 0], [len(forget), len(holdout)]),
        groups=[f"{name} {label}" for name, labels in vars(groups).items() for label in labels],
        batch_size=config.batch_size,
        seed=config.seed,
        **records.lengths,
    )
    correct = told.correct[int(np.argmax(np.nan_to_num(told.accuracy)))]
    # Who is said to be of the forget set: the AUC of yes and no is the balanced accuracy.
    statistic = replace(
        records.statistic("probe_forget_or_holdout", "latent", "auc"),
        set="forget against holdout",
        others=records.positions(name="holdout"),
    )
    return Found({statistic: (correct[: len(forget)], 1 - correct[len(forget) :])})
