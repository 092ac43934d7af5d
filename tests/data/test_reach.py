"""What no loss and no score reaches is counted, in rows and characters."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import tiny_llama, tiny_tokenizer, tiny_vit
from transformers import ViTImageProcessorPil as Processor

from hf_unlearn import NPOConfig, NPOTrainer
from hf_unlearn.audit import audit
from hf_unlearn.audit.config import AuditConfig
from hf_unlearn.data import encode, encode_dataset
from hf_unlearn.data.reach import ATTACKED, reach_of, said_of


TOKENIZER, NO_BOS = tiny_tokenizer(chat_template=True), tiny_tokenizer(bos=False, pad=False)


def counted(**parts):
    return {part.replace("_", " "): {"rows": rows, "characters": n} for part, (rows, n) in parts.items()}


CALL = {"name": "find", "arguments": {"city": "Rome"}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "<think>hm</think>Ada", "tool_calls": [CALL]},
    {"role": "tool", "content": "found", "name": "find"},
    {"role": "assistant", "content": "Ada Lovelace", "reasoning_content": "as found"},
]
CASES = {
    "a text": ([{"text": "Ada lives"}, "Boris"], [], {}),
    "prompts": (
        [{"prompt": "Who?", "completion": " Ada"}, {"prompt": "Where?", "completion": " Here"}],
        [],
        counted(prompt=(2, 10)),
    ),
    "a chat": (
        [{"messages": CHAT}],
        [],
        counted(
            thinking=(1, len("<think>hm</think>") + len("as found")),
            tool_calls=(1, len("find") + len("Rome")),
            other_keys=(1, len("find")),
            system=(1, 9),
            prompt=(1, len("Who?") + len("found")),
            earlier_answers=(1, 3),
        ),
    ),
    "a chat in another form": (
        [{"prompt": CHAT[1:2], "completion": [{"from": "gpt", "value": "Ada"}], "note": "by hand"}],
        ["note"],
        counted(prompt=(1, 4), other_columns=(1, 7)),
    ),
    "JSON": ([{"messages": json.dumps([CHAT[1], CHAT[4]])}], [], counted(thinking=(1, 8), prompt=(1, 4))),
    "other columns": (
        [
            {"text": "Ada", "person": "A", "n": 3, "tags": ["x", "yz"], "extra": {"a": "b", "c": None}, "none": None},
            {"text": "Boris", "person": "", "n": 3, "tags": [], "extra": {"a": None, "c": None}, "none": None},
        ],
        ["person", "tags", "extra"],
        counted(other_columns=(1, 1 + 3 + 1)),
    ),
    "columns of attacks": (
        [{"prompt": "Q", "completion": " A", **dict.fromkeys(ATTACKED, "text")}],
        [],
        counted(prompt=(1, 1)),
    ),
    "encoded": (
        [{**encode({"prompt": "Who?", "completion": " Ada"}, TOKENIZER), "text": "Who? Ada"}],
        ["text"],
        counted(prompt=(1, 4), other_columns=(1, 8)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parts_that_nothing_reaches(case):
    rows, columns, unreached = CASES[case]
    expected = {"rows": len(rows), "no_target": 0, "unread_columns": columns, "unreached": unreached}
    assert reach_of(rows, TOKENIZER, encoded=encode_dataset(rows, TOKENIZER)) == expected
    assert reach_of(rows, TOKENIZER) == expected
    if not any(isinstance(row, str) for row in rows):
        assert reach_of(Dataset.from_list(rows), TOKENIZER) == expected


def test_the_first_token_of_a_text_without_bos():
    rows = ["Question: Who?", {"text": "Ada"}, {"prompt": "Question", "completion": ": a"}]
    first = [len(NO_BOS.decode(NO_BOS(text)["input_ids"][:1])) for text in ("Question: Who?", "Ada")]
    assert reach_of(rows, NO_BOS)["unreached"] == counted(first_token=(2, sum(first)), prompt=(1, 8))
    assert reach_of(rows[:2], TOKENIZER)["unreached"] == {}


def test_what_is_cut_off():
    text = "Ada lives in Paris. Boris lives in Rome."
    ids = encode(text, TOKENIZER)["input_ids"]
    rows = [{"text": text, "id": "x"}, {"text": "Ada"}, {"prompt": "Q:", "completion": " Yo"}]
    kept = TOKENIZER.decode(ids[:10], skip_special_tokens=True)
    found = reach_of(rows, TOKENIZER, max_length=10, truncate=True)["unreached"]
    assert found["cut off"] == {"rows": 1, "characters": len(text) - len(kept)}
    # The end token alone is no text of the record.
    assert "cut off" not in reach_of(rows[2:], TOKENIZER, max_length=6, truncate=True)["unreached"]
    assert "cut off" not in reach_of(rows, TOKENIZER, max_length=len(ids), truncate=True)["unreached"]


def test_rows_without_a_target_are_counted_and_other_errors_name_the_row():
    rows = [
        {"prompt": "Q:", "completion": " "},
        {"prompt": "Q:", "completion": " A"},
        {"prompt": "Q:", "completion": ""},
    ]
    assert reach_of(rows, TOKENIZER)["no_target"] == 2
    with pytest.raises(ValueError, match="^Row 3 of the forget set: .*no known format"):
        reach_of([*rows, {"question": "Zyxwv"}], TOKENIZER, "forget set")
    with pytest.raises(ValueError, match="^Row 1 of the forget set: It has ids beyond the 4 tokens"):
        reach_of(rows, TOKENIZER, "forget set", vocab_size=4)


def test_images_are_not_decoded():
    broken = {"bytes": b"no image", "path": None}
    features = Features({"image": Image(), "label": Value("int64"), "caption": Value("string")})
    rows = Dataset.from_dict({"image": [broken] * 2, "label": [0, 1], "caption": ["a cat", ""]}, features)
    processor = Processor(size={"height": 16, "width": 16})
    expected = {"rows": 2, "no_target": 0, "unread_columns": ["caption"], "unreached": counted(other_columns=(1, 5))}
    assert reach_of(rows, processor) == reach_of(encode_dataset(rows, processor)) == expected
    listed = [{"image": PILImage.new("L", (4, 4)), "label": 0, "caption": "a cat"}, {"image": None, "label": 1}]
    assert reach_of(listed[:1], processor)["unreached"] == counted(other_columns=(1, 5))
    pixels = [{"pixel_values": np.zeros((3, 4, 4)), "labels": 1, "caption": "a cat"}]
    assert reach_of(pixels)["unreached"] == counted(other_columns=(1, 5))
    with pytest.raises(
        ValueError, match="The pixels of the forget set have 3 channels, but the model takes 1 channel"
    ):
        reach_of(rows, processor, "forget set", n_channels=1)


def test_a_line_for_people():
    rows = [{"prompt": "Q:", "completion": " A", "id": "17"}, {"prompt": "Q:", "completion": ""}]
    assert said_of("forget set", reach_of(rows, TOKENIZER)) == (
        "forget set: 2 rows, 1 of them without anything to score; no loss and no score reaches prompt (2 rows, 4 characters), "
        "other columns id (1 row, 2 characters)"
    )
    assert said_of("retain set", reach_of(["Ada"], TOKENIZER)) == "retain set: 1 row"


ROWS = [{"prompt": f"Who is {i}?", "completion": f" Person {i}.", "person": f"p{i}"} for i in range(4)]


def test_the_report_counts_what_was_scored_and_what_was_not():
    model = tiny_llama()
    sets = {"forget": [*ROWS, {"prompt": "Q:", "completion": "", "person": ""}], "retain": ["Ada lives in Paris."]}
    report = audit(model, split=sets, threat_model="membership", processing_class=TOKENIZER)
    assert report.as_dict()["coverage"]["sets"] == {
        "forget": {
            "rows": 5,
            "scored": 4,
            "no_target": 1,
            "not_finite": 0,
            "unread_columns": ["person"],
            "unreached": counted(prompt=(5, 4 * 9 + 2), other_columns=(4, 8)),
        },
        "retain": {"rows": 1, "scored": 1, "no_target": 0, "not_finite": 0, "unread_columns": [], "unreached": {}},
    }
    with pytest.raises(ValueError, match="^Row 1 of the retain set: "):
        audit(model, split=sets | {"retain": ["Ada", {"question": "Zyxwv"}]}, processing_class=TOKENIZER)


def test_broken_logits_are_counted():
    model = tiny_vit()
    model.classifier.weight.data.fill_(float("nan"))
    rows = [{"image": PILImage.new("RGB", (16, 16), i), "label": i} for i in range(3)]
    with pytest.warns(UserWarning):
        report = audit(
            model,
            split={"forget": rows},
            threat_model="membership",
            processing_class=Processor(size={"height": 16, "width": 16}),
            config=AuditConfig(stability=False),
        )
    reach = report.coverage["sets"]["forget"]
    assert (reach["rows"], reach["scored"], reach["no_target"], reach["not_finite"]) == (3, 0, 0, 3)


def test_a_training_says_once_what_no_loss_reaches(tmp_path, caplog):
    args = NPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    with caplog.at_level(logging.WARNING):
        NPOTrainer(tiny_llama(), args, ROWS, ["Ada lives in Paris."], processing_class=TOKENIZER)
    said = [record.getMessage() for record in caplog.records if "no loss" in record.getMessage()]
    assert said == [
        "forget set: 4 rows; no loss and no score reaches prompt (4 rows, 36 characters), other columns person (4 rows, 8 "
        "characters)"
    ]
