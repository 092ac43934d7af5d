"""Time and peak memory of scoring against the number of examples and the size of the vocabulary, as a table and a plot.

python benchmarks/audit_cost.py --output docs/audit_cost.svg
"""

from __future__ import annotations

import argparse

import torch
from audit import BATCH_SIZE, word_tokenizer
from measure import cpu_seconds, in_own_process, peak_growth, tiny_llama

from hf_unlearn.audit import score
from hf_unlearn.evidence.tables import markdown_table


EXAMPLES, VOCABULARIES = (50, 100, 200, 400), (1_000, 8_000, 32_000, 131_072)
# What the other axis is held at.
FIXED_EXAMPLES, FIXED_VOCABULARY = 50, 8_000


def examples(n: int, vocab_size: int) -> list[dict[str, str]]:
    """Prompts of 32 and answers of 32 tokens, no two alike."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(2, vocab_size, (n, 64), generator=generator).tolist()
    return [
        {"prompt": " ".join(f"w{w}" for w in row[:32]), "completion": "".join(f" w{w}" for w in row[32:])}
        for row in words
    ]


def cost(n: int, vocab_size: int) -> tuple[float, float]:
    """CPU seconds, and MiB on top of the model and the rows."""
    model, tokenizer = tiny_llama(vocab_size, layers=2), word_tokenizer(vocab_size)
    rows = examples(n, vocab_size)
    seconds = []
    memory = peak_growth(
        lambda: seconds.append(cpu_seconds(lambda: score(model, tokenizer, rows, BATCH_SIZE, sampling=()))[1])
    )
    return seconds[0], memory


def draw(of_examples, of_vocabulary, path: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "hf_unlearn"
    figure, panels = plt.subplots(2, 2, figsize=(8, 5.5), squeeze=False)
    sides = (("examples", EXAMPLES, of_examples), ("vocabulary", VOCABULARIES, of_vocabulary))
    for column, (label, x, found) in enumerate(sides):
        for row, unit in enumerate(("CPU seconds", "peak MiB")):
            panel = panels[row][column]
            panel.plot(x, [values[row] for values in found], marker="o")
            panel.set(xlabel=label, ylabel=unit, ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", help="file for the plot, such as docs/audit_cost.svg")
    path = parser.parse_args().output
    torch.set_num_threads(1)
    of_examples = [in_own_process(cost, n, FIXED_VOCABULARY) for n in EXAMPLES]
    of_vocabulary = [in_own_process(cost, FIXED_EXAMPLES, size) for size in VOCABULARIES]
    rows = [
        [f"{n}", f"{FIXED_VOCABULARY:,}", f"{s:.2f}", f"{m:.0f}"]
        for n, (s, m) in zip(EXAMPLES, of_examples, strict=True)
    ]
    rows += [
        [f"{FIXED_EXAMPLES}", f"{size:,}", f"{s:.2f}", f"{m:.0f}"]
        for size, (s, m) in zip(VOCABULARIES, of_vocabulary, strict=True)
    ]
    print(markdown_table([["examples", "vocabulary", "CPU s", "peak MiB"], *rows]))
    if path:
        draw(of_examples, of_vocabulary, path)


if __name__ == "__main__":
    main()
