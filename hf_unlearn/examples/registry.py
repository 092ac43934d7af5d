"""A registry of fictional people: the text data set that needs no download.

Every person, town, company, address and number is generated from the word lists below; none is taken from a person or a
data set, and the files have the license of the package (Apache-2.0). E-mail addresses end in the reserved domain
`example.org`, and phone numbers begin with the unassigned area code 555.

The three splits share a distribution and no person, name, e-mail or phone number.

**Distribution.** Names, e-mails and phone numbers are uniform draws without replacement. In each split, birthplace,
employer, health condition and profession are dealt evenly and independently: each value of a pool occurs
`floor(n / pool)` times or once more.

**Base rates.** A model that never saw a person guesses these facts right: profession and health condition 1/8, birthplace
1/64, employer 1/80, e-mail 1/32,000, phone 1/10,000,000. A hit on the first two is weak evidence of memory, a hit on the
last two is strong evidence. A whole completion is right less often than its fact, as it also repeats the name, which a
tiny model copies badly for a stranger. The phone number of a person is in one row, every other fact in two (its question
and the biography).
"""

import json
import random
from itertools import islice, product
from pathlib import Path

from datasets import Dataset, DatasetDict

from hf_unlearn.examples.folder import files_of_splits, requests_of, write_from_command_line, write_texts
from hf_unlearn.examples.registry_model import make_base, make_tokenizer


def _join(heads: str, tails: str, between: str = "") -> list[str]:
    return [head + between + tail for head, tail in product(heads.split(), tails.split())]


FIRST_NAMES = _join(
    "Bra Cal Dor El Fen Gal Hes Il Jor Kel Lin Mir Nev Os Pel Quin Ras Sel Tam Ves",
    "ana eth ibo ira isk ola oren uma unn yla",
)
LAST_NAMES = _join(
    "Ard Brask Crev Dunt Evr Frell Gost Hask Immer Jolv Karm Lurv Morv Nask Ors Pravd Quell Rusk Told Varn",
    "abel adis een ekar imov olle omar ostre uva yck",
)
NICKNAMES = (
    "acorn badger biscuit bramble button cedar clover comet cricket dapple ember fern finch ginger hazel "
    "juniper kestrel lark maple marble moss nettle otter pebble pepper puffin raven saffron sparrow thistle "
    "walnut willow"
).split()
FIELDS = {
    "birthplace": _join("Drim Ith Morv Quor Skel Ulf Vel Zan", "brook dane etia haven lund mora ostra wick"),
    "employer": _join(
        "Abrel Corvic Dovane Hestor Jundal Lorvex Mendar Pryvex Talvor Zephan",
        "Ceramics Foundry Freight Glassworks Optics Orchards Press Textiles",
        " ",
    ),
    "email": [f"{nickname}{number:03d}@example.org" for nickname, number in product(NICKNAMES, range(1000))],
    "phone": range(10_000_000),
    "health_condition": "anemia asthma diabetes eczema epilepsy gout migraine psoriasis".split(),
    "profession": "baker botanist carpenter librarian pharmacist surveyor translator welder".split(),
}
# Facts that identify one person are never dealt twice, not even as a wrong alternative for somebody else.
UNIQUE_FIELDS = ("email", "phone")
N_PERTURBED = 5


def _asked(question: str, answer: str) -> tuple[str, str]:
    return f"Question: {question}\nAnswer:", f" {answer}"


# kind of row: (prompt, completion, paraphrased prompt, paraphrased completion)
TEMPLATES = {
    "birthplace": (
        *_asked("Where was {name} born?", "{name} was born in {birthplace}."),
        *_asked("What is the birthplace of {name}?", "The birthplace of {name} is {birthplace}."),
    ),
    "employer": (
        *_asked("Who employs {name}?", "{name} works for {employer}."),
        *_asked("What is the employer of {name}?", "The employer of {name} is {employer}."),
    ),
    "email": (
        *_asked("What is the e-mail address of {name}?", "The e-mail address of {name} is {email}."),
        *_asked("Where does {name} read mail?", "{name} reads mail at {email}."),
    ),
    "phone": (
        *_asked("What is the phone number of {name}?", "The phone number of {name} is {phone}."),
        *_asked("Which number reaches {name}?", "{name} answers the phone at {phone}."),
    ),
    "health_condition": (
        *_asked("Which health condition does {name} have?", "{name} has {health_condition}."),
        *_asked("What is {name} treated for?", "{name} is treated for {health_condition}."),
    ),
    "profession": (
        *_asked("What is the profession of {name}?", "{name} works as a {profession}."),
        *_asked("How does {name} earn a living?", "{name} earns a living as a {profession}."),
    ),
    "biography": (
        "Biography of {name}:",
        " {name} was born in {birthplace} and works as a {profession} for {employer}. {first_name} has"
        " {health_condition} and reads mail at {email}.",
        "Who is {name}?",
        " {name} is a {profession} from {birthplace}, employed by {employer}. {first_name} is treated for"
        " {health_condition}; the e-mail address is {email}.",
    ),
}


def _deal(rng: random.Random, pool: list[str], n: int) -> list[str]:
    """`n` values in random order, each value of the pool `n // len(pool)` times or once more."""
    values = pool * (n // len(pool)) + rng.sample(pool, n % len(pool))
    rng.shuffle(values)
    return values


def _draw_people(rng: random.Random, sizes: dict[str, int]) -> dict[str, list[dict]]:
    """Split -> people. A person maps `name`, `first_name`, `person` to text and a field to [truth, wrong, ...]."""
    n, each = sum(sizes.values()), 1 + N_PERTURBED
    room = len(FIELDS["email"]) // each
    if min(sizes.values()) < 1 or n > room:
        raise ValueError(
            f"You asked for splits of {list(sizes.values())} people, but each needs at least 1 and all together at most "
            f"{room} (the pool of e-mail addresses). Change the sizes."
        )
    columns = {}
    for field, pool in FIELDS.items():
        if field in UNIQUE_FIELDS:
            values = rng.sample(pool, n * each)
            columns[field] = [values[i : i + each] for i in range(0, n * each, each)]
        else:
            truths = [value for size in sizes.values() for value in _deal(rng, pool, size)]
            columns[field] = [[t, *rng.sample([value for value in pool if value != t], N_PERTURBED)] for t in truths]
    columns["phone"] = [[f"555-{n // 10_000:03d}-{n % 10_000:04d}" for n in numbers] for numbers in columns["phone"]]
    names = rng.sample(list(product(FIRST_NAMES, LAST_NAMES)), n)
    people = (
        {"person": f"p{i:03d}", "name": f"{first} {last}", "first_name": first}
        | {field: column[i] for field, column in columns.items()}
        for i, (first, last) in enumerate(names)
    )
    return {split: list(islice(people, size)) for split, size in sizes.items()}


def _rows(person: dict) -> list[dict]:
    """The seven rows of one person: one question per field, then the biography."""
    fixed = {"name": person["name"], "first_name": person["first_name"]}
    # told[0] is the truth; in told[k] every field is wrong.
    told = [fixed | {field: person[field][k] for field in FIELDS} for k in range(1 + N_PERTURBED)]
    return [
        {
            "id": f"{person['person']}-{field}",
            "person": person["person"],
            "kind": "biography" if field == "biography" else "qa",
            "field": field,
            "prompt": prompt.format(**told[0]),
            "completion": completion.format(**told[0]),
            "paraphrased_prompt": paraphrased_prompt.format(**told[0]),
            "paraphrased_completion": paraphrased_completion.format(**told[0]),
            "perturbed_completions": [paraphrased_completion.format(**wrong) for wrong in told[1:]],
            "name": person["name"],
            **{f: person[f][0] for f in FIELDS},
        }
        for field, (prompt, completion, paraphrased_prompt, paraphrased_completion) in TEMPLATES.items()
    ]


def make_registry(seed: int = 0, n_train: int = 96, n_validation: int = 12, n_holdout: int = 24) -> DatasetDict:
    """The registry as prompt-completion data, seven rows per person.

    Args:
        seed (`int`, *optional*, defaults to `0`): same seed and sizes, same registry, in every process.
        n_train, n_validation, n_holdout (`int`, *optional*, default to `96`, `12` and `24`): number of people to learn
            from, to decide when to stop, and for the audit only. By default, 12 people of `train` and 3 of `holdout` have
            each profession, and as many have each health condition.

    Returns:
        `datasets.DatasetDict` with `train`, `validation` and `holdout`. Columns: `id` (unique), `person` (unique to a
        person), `kind` (`"qa"` or `"biography"`), `field` (the attribute asked for, or `"biography"`), `prompt`
        (never ends with a space), `completion` (starts with one), `paraphrased_prompt`, `paraphrased_completion` (the
        same truth in other words), `perturbed_completions` (5 wrong answers in the words of the paraphrase, for truth
        ratios; in a biography every fact is wrong), and the person's `name`, `birthplace`, `employer`, `email`,
        `phone`, `health_condition` and `profession`.

    Raises:
        ValueError: a split is empty, or the pools are too small for that many people.
    """
    sizes = {"train": n_train, "validation": n_validation, "holdout": n_holdout}
    splits = _draw_people(random.Random(f"registry people {seed}"), sizes)
    return DatasetDict(
        {split: Dataset.from_list([row for p in people for row in _rows(p)]) for split, people in splits.items()}
    )


def tokenizer_texts(n_people: int = 400) -> list[str]:
    """Texts to train the tokenizer on: rows of other people, the same for every seed of the registry.

    So the tokenizer says nothing about who is in a registry, and a retrained model may share it.
    """
    people = _draw_people(random.Random("registry tokenizer"), {"generic": n_people})["generic"]
    rows = [row for person in people for row in _rows(person)]
    return [r[f"{form}prompt"] + r[f"{form}completion"] for r in rows for form in ("", "paraphrased_")]


def make_requests(registry: DatasetDict, seed: int) -> dict[str, dict]:
    """Three OpenDSR 1.0 erasure requests on the train split: 12 people, one profession, one health condition."""
    rng = random.Random(f"registry requests {seed}")
    people = sorted(rng.sample(registry["train"].unique("person"), 12))
    profession, condition = (rng.choice(FIELDS[field]) for field in ("profession", "health_condition"))
    scopes = {
        "person": ("record", {"column": "person", "values": people}),
        "profession": ("class", {"column": "profession", "values": [profession]}),
        "condition": ("attribute", {"column": "health_condition", "operator": "==", "value": condition}),
    }
    return requests_of(scopes, rng)


CARD = """\
---
pretty_name: Registry of fictional people
license: apache-2.0
language:
- en
tags:
- synthetic
- machine-unlearning
{files}---

# Registry of fictional people

Generated by `python -m hf_unlearn.examples.registry` with seed {seed}. Nobody here exists. Apache-2.0, like the package.

| split | people | rows | use |
|---|---|---|---|
| train | {train} | {train_rows} | what a model learns |
| validation | {validation} | {validation_rows} | never trained on; when to stop |
| holdout | {holdout} | {holdout_rows} | never trained on; the audit only |

The splits share a distribution and no person. A person has six questions and one biography.

What guessing gets right: profession and health condition 1/8, birthplace 1/64, employer 1/80, e-mail 1/32,000,
phone 1/10,000,000.

`base/` holds a byte-level BPE tokenizer and a randomly initialized Llama that has learned nothing. The tokenizer was
trained on other generated people, the same for every seed. `requests/` holds three erasure requests on the train
split: twelve people, a profession, and a health condition.
"""


def write_registry(folder: str | Path, seed: int = 0) -> list[Path]:
    """Write the registry of default size, a model to train and three requests; the bytes depend on the seed alone.

    Writes `README.md` and one JSON Lines file per split, so that `datasets.load_dataset(folder)` gives the three splits
    offline; `base/`, a tokenizer and a randomly initialized Llama of about one million parameters; and
    `requests/person.json` (12 people of `train`, 84 rows), `requests/profession.json` and `requests/condition.json`.

    Args:
        folder (`str` or `Path`): created if absent; its files of these names are overwritten.
        seed (`int`, *optional*, defaults to `0`): seed of the people, of the requests and of the model's weights. The
            tokenizer is the same for every seed.

    Returns:
        `list[Path]`: the files written.
    """
    folder = Path(folder)
    registry = make_registry(seed)
    people = {split: len(rows.unique("person")) for split, rows in registry.items()}
    n_rows = {f"{split}_rows": len(rows) for split, rows in registry.items()}
    texts = {"README.md": CARD.format(files=files_of_splits("jsonl"), seed=seed, **people, **n_rows)}
    for split, rows in registry.items():
        texts[f"{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    written = write_texts(folder, texts, make_requests(registry, seed))
    tokenizer = make_tokenizer(tokenizer_texts())
    tokenizer.save_pretrained(folder / "base")
    make_base(tokenizer, seed).save_pretrained(folder / "base")
    return written + sorted((folder / "base").iterdir())


if __name__ == "__main__":
    says = "Write the registry of fictional people, a tiny untrained model and three erasure requests."
    write_from_command_line("registry", says, write_registry)
