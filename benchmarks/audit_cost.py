"""What an audit costs in CPU time and memory, by the number of examples and the size of the vocabulary.

    python benchmarks/audit_cost.py docs/audit_cost.svg

Ours is the whole table, from which all likelihood metrics are read. The textbook is one metric alone, Min-K%++ from the
logits of whole batches, which a collection of metrics computes beside its others. Every point is a process of its own.
"""

from __future__ import annotations

import argparse

import audit_textbook
import torch
from audit import BATCH_SIZE, suite
from measure import cpu_seconds, in_own_process, markdown_table, peak_growth

from hf_unlearn.audit import min_k_plus_plus, score
from hf_unlearn.data.text import encode


EXAMPLES, AT_VOCABULARY = (50, 100, 200, 400), 8_000
VOCABULARIES, AT_EXAMPLES = (1_000, 8_000, 32_000, 128_000), 50


def point(form: str, n: int, vocab_size: int, **size) -> tuple[float, float]:
    """CPU seconds, and MiB on top of the model and its texts."""
    torch.set_num_threads(1)
    given = suite(n, vocab_size, **size)
    examples = given.rows["holdout"]
    rows = [encode(example, given.tokenizer) for example in examples]
    run = {
        "ours": lambda: min_k_plus_plus(score(given.model, given.tokenizer, examples, BATCH_SIZE, sampling=())),
        "textbook": lambda: audit_textbook.min_k_plus_plus(given.model, rows, BATCH_SIZE),
    }[form]
    seconds = 0.0

    def timed():
        nonlocal seconds
        _, seconds = cpu_seconds(run)

    mib = peak_growth(timed)
    return seconds, mib


def measured(points: list[tuple[int, int]]) -> dict[str, list[tuple[float, float]]]:
    return {form: [in_own_process(point, form, *at) for at in points] for form in ("ours", "textbook")}


def table(name: str, along, found: dict[str, list[tuple[float, float]]]) -> str:
    columns = [name, "ours, CPU s", "textbook, CPU s", "ours, peak MiB", "textbook, peak MiB"]
    rows = [
        [f"{x:,}", *(f"{found[form][k][what]:.{2 - 2 * what}f}" for what in (0, 1) for form in ("ours", "textbook"))]
        for k, x in enumerate(along)
    ]
    return markdown_table(columns, rows)


def plot(path: str, by_examples, by_vocabulary):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "audit", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(8, 5.5), sharex="col", layout="constrained")
    panels = (
        (EXAMPLES, by_examples, f"examples (vocabulary of {AT_VOCABULARY:,})"),
        (VOCABULARIES, by_vocabulary, f"vocabulary ({AT_EXAMPLES} examples)"),
    )
    names = {"ours": "the whole table", "textbook": "textbook, one metric alone"}
    for column, (along, found, name) in enumerate(panels):
        for line, unit in enumerate(("CPU seconds", "peak memory, MiB")):
            axis = axes[line, column]
            for form, style in (("ours", "o-"), ("textbook", "s--")):
                axis.plot(along, [values[line] for values in found[form]], style, label=names[form])
            axis.set(xscale="log", yscale="log", ylabel=unit, xlabel=name if line else None)
            axis.set_xticks(along, [f"{x:,}" for x in along])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main():
    parser = argparse.ArgumentParser(description="CPU seconds and peak memory of an audit, and a plot of them.")
    parser.add_argument("plot", nargs="?", help="SVG to write")
    path = parser.parse_args().plot
    by_examples = measured([(n, AT_VOCABULARY) for n in EXAMPLES])
    by_vocabulary = measured([(AT_EXAMPLES, vocab_size) for vocab_size in VOCABULARIES])
    print(table("examples", EXAMPLES, by_examples), table("vocabulary", VOCABULARIES, by_vocabulary), sep="\n\n")
    if path:
        plot(path, by_examples, by_vocabulary)


if __name__ == "__main__":
    main()
