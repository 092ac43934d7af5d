"""Forgetting classes of CIFAR-100 as a suite of `evaluate`."""

import evaluate
import numpy as np
from evaluate.evaluation_suite import SubTask

from hf_unlearn.audit import ATTACKS, Estimate, answer_probability, score
from hf_unlearn.audit.measures.aggregates import average_gap, tug_of_war
from hf_unlearn.audit.measures.classifiers import correctness, svc_attack
from hf_unlearn.audit.measures.statistic import MEMBER, UTILITY, Statistic
from hf_unlearn.data import load_rows
from hf_unlearn.data.images import label_names
from hf_unlearn.evaluate_modules.base import loaded
from hf_unlearn.evaluate_modules.suites import result, results


# Columns of the data set on the Hub.
COLUMNS = {"img": "image", "fine_label": "label"}
AS_RETRAINED = "as retrained is best"


class Suite(evaluate.EvaluationSuite):
    """Accuracy on the classes to forget and on the others, membership attacks, and how far all that is from retraining.

    Run it with `load_suite("cifar100_class").run(model, processing_class=processor, retrained=retrained)`.
    """

    def __init__(self, name):
        super().__init__(name)
        splits = ("train", "test")
        self.suite = [SubTask("image-classification", "uoft-cs/cifar100", split=split) for split in splits]

    def run(
        self,
        model,
        processing_class=None,
        retrained=None,
        data="uoft-cs/cifar100",
        forget=("tiger", "motorcycle"),
        siblings=("lion", "bicycle"),
        limit=None,
        batch_size=64,
        seed=0,
    ):
        """Measure a model.

        Args:
            model (`PreTrainedModel` or `str`): an image classifier, or the folder or Hub id to load it from.
            processing_class (`BaseImageProcessor`, *optional*): its image processor; needed with a model object.
            retrained (`PreTrainedModel` or `str`, *optional*): a model that never saw the classes to forget.
            data (`str`, *optional*): Hub id or folder with the splits `train` and `test`, and the columns `image` and `label`
                or `img` and `fine_label`.
            forget (sequence of `str`, *optional*): names of the classes to forget.
            siblings (sequence of `str`, *optional*): classes like them, where damage shows first. They are part of `test`.
            limit (`int`, *optional*): so many images of each set, evenly spaced.
            batch_size (`int`, *optional*, defaults to `64`): images a forward pass.
            seed (`int`, *optional*, defaults to `0`): of bootstrap intervals and of the images an attack learns from.

        Returns:
            `list[dict]`, one a set and measure: `task_name`, `measure`, `value`, `low`, `high` (95 % interval), `n`,
            `n_missing`, `orientation`, `method`, `reason`; with `retrained`, its value, and `difference` (paired, with an
            interval), the average gap of SalUn's table and ToW. Images of the forgotten classes that were never trained on
            are `holdout`: membership attacks compare with them, and not with other classes.

        Raises:
            ValueError: a class that the data does not have.
        """
        sets, n_siblings = _sets(data, list(forget), list(siblings), limit)

        def measure(model):
            model, processor = loaded(model, processing_class)
            tables = {name: score(model, processor, rows, batch_size, sampling=()) for name, rows in sets.items()}
            if n_siblings:
                tables["siblings"] = tables["test"][len(tables["test"]) - n_siblings :]
            return _measure(tables, seed)

        found = measure(model)
        reference = None if retrained is None else measure(retrained)
        rows = results(found, reference, seed)
        return rows if reference is None else [*rows, *_against_retrained(rows)]


def _sets(data, forget, siblings, limit):
    """The rows of each set, and how many of the last test rows are siblings; no image is decoded."""
    splits = {}
    for split in ("train", "test"):
        rows = load_rows(str(data), split)
        renamed = {
            old: new for old, new in COLUMNS.items() if old in rows.column_names and new not in rows.column_names
        }
        splits[split] = rows.rename_columns(renamed)
    names = label_names(splits["train"])
    unknown = [name for name in (*forget, *siblings) if name not in names]
    if unknown:
        raise ValueError(f"The data has no class {', '.join(unknown)}. It has {', '.join(names)}.")
    of_forget, of_siblings = ([names.index(name) for name in classes] for classes in (forget, siblings))
    labels = {split: np.asarray(rows["label"]) for split, rows in splits.items()}
    places = {
        "forget": ("train", np.isin(labels["train"], of_forget)),
        "retain": ("train", ~np.isin(labels["train"], of_forget)),
        "holdout": ("test", np.isin(labels["test"], of_forget)),
        "test": ("test", ~np.isin(labels["test"], of_forget)),
    }
    sets, n_siblings = {}, 0
    for name, (split, mask) in places.items():
        index = np.flatnonzero(mask)
        if limit is not None and limit < len(index):
            index = index[np.linspace(0, len(index) - 1, limit).round().astype(int)]
        if name == "test":  # with the siblings at its end, so that their table is a slice of this one
            is_sibling = np.isin(labels["test"][index], of_siblings)
            index, n_siblings = np.concatenate([index[~is_sibling], index[is_sibling]]), int(is_sibling.sum())
        if len(index):
            sets[name] = splits[split].select(index)
    return sets, n_siblings


def _measure(tables, seed):
    found = {}
    for name, table in tables.items():
        task, direction = f"cifar100/{name}", AS_RETRAINED if name in ("forget", "holdout") else UTILITY
        found[Statistic("accuracy", task, direction, kind="rate")] = correctness(table)
        found[Statistic("probability", task, direction)] = answer_probability(table)
    called = svc_attack(tables["forget"], tables["retain"], tables["test"], seed=seed)
    found[Statistic("svc_non_member_rate", "cifar100/forget", AS_RETRAINED, kind="rate")] = 1 - called
    if "holdout" in tables:
        sides = ATTACKS["loss"](tables["forget"]), ATTACKS["loss"](tables["holdout"])
        found[Statistic("loss_auc", "cifar100/membership", MEMBER, kind="auc")] = sides
    return found


def _against_retrained(rows):
    """SalUn's average gap and ToW, from the four columns of the table."""
    columns = {
        "UA": ("cifar100/forget", "accuracy"),
        "RA": ("cifar100/retain", "accuracy"),
        "TA": ("cifar100/test", "accuracy"),
        "MIA": ("cifar100/forget", "svc_non_member_rate"),
    }
    of = {(row["task_name"], row["measure"]): row for row in rows}
    ours, theirs = ({name: of[key][column] for name, key in columns.items()} for column in ("value", "retrained"))
    for side in (ours, theirs):
        side["UA"] = 1 - side["UA"]
    accuracies = [{name: side[name] for name in ("UA", "RA", "TA")} for side in (ours, theirs)]
    return [
        _aggregate("average_gap", "lower = nearer to retrained", average_gap(ours, theirs), of),
        _aggregate("tug_of_war", "higher = nearer to retrained, at most 1", tug_of_war(*accuracies), of),
    ]


def _aggregate(measure, orientation, aggregate, of):
    value = np.nan if aggregate.value is None else aggregate.value
    n = (of[("cifar100/forget", "accuracy")]["n"],)
    reason = aggregate.reason or "an aggregate: its parts, which are differences to retrained, have the intervals"
    estimate = Estimate(value, np.nan, np.nan, n, "none", reason=reason)
    return result("cifar100", measure, orientation, estimate) | {"parts": aggregate.parts}
