import io

import numpy as np
import pytest
import torch
from data_dir import DATA
from datasets import Array3D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import tiny_tokenizer, tiny_vit
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments
from transformers import ViTImageProcessorPil as Processor

from hf_unlearn.data import (
    AugmentedRows,
    ImageRows,
    PairedDataset,
    UnlearningCollator,
    encode,
    encode_dataset,
    load_rows,
)
from hf_unlearn.examples.image_model import make_vit, write_vit


SIZE = {"height": 16, "width": 16}
PROCESSOR = Processor(size=SIZE)
GRAY = {"image_mean": [0.5], "image_std": [0.5]}


class Counting(Processor):
    """Counts the images that it is given."""

    calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return super().__call__(*args, **kwargs)


def picture(seed: int, mode: str = "RGB", side: int = 16) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).convert(mode)


def table(n: int = 6, label: str = "label") -> Dataset:
    features = Features({"image": Image(), label: ClassLabel(names=list("abcde"))})
    return Dataset.from_dict({"image": [picture(i) for i in range(n)], label: [i % 5 for i in range(n)]}, features)


def expected(image: PILImage.Image) -> np.ndarray:
    """Pixels by the definition, in float64: scaled to [0, 1], then minus 0.5, over 0.5."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    return ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_three_channels(mode):
    image = picture(0, mode)
    row = encode({"image": image, "label": 3}, PROCESSOR)
    assert row["pixel_values"].shape == (3, 16, 16) and row["pixel_values"].dtype == torch.float32
    np.testing.assert_allclose(row["pixel_values"].numpy(), expected(image), atol=1e-6)
    assert row["labels"] == 3
    if mode in ("L", "1"):
        assert torch.equal(row["pixel_values"][0], row["pixel_values"][2])


def png(image: PILImage.Image, **options) -> dict:
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return {"bytes": file.getvalue(), "path": None}


def ways(image: PILImage.Image, **options) -> list:
    """The same file as a table, as its bytes, and opened by PIL."""
    file = png(image, **options)
    rows = Dataset.from_dict({"image": [file], "label": [0]}, Features({"image": Image(), "label": Value("int64")}))
    opened = {"image": PILImage.open(io.BytesIO(file["bytes"])), "label": 0}
    return [rows[0], rows.cast_column("image", Image(decode=False))[0], opened]


def test_16_bit_gray_is_scaled_to_8_bit():
    deep = np.concatenate([np.arange(0, 65536, 257), np.arange(100, 65536, 997)])
    deep = np.resize(deep, (16, 16 * (len(deep) // 256))).astype(np.uint16)
    exact = np.floor(deep.astype(np.float64) * 255 / 65535 + 0.5)  # no value lies halfway
    image = PILImage.fromarray(deep)
    for processor in (Processor(size=SIZE, do_resize=False), Processor(size=SIZE, do_resize=False, **GRAY)):
        expected = (exact / 255 - 0.5) / 0.5
        for row in [{"image": image, "label": 0}, *ways(image)]:
            pixels = encode(row, processor)["pixel_values"].numpy()
            np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=1e-6)
    big_endian = PILImage.frombytes("I;16B", image.size, deep.astype(">u2").tobytes())
    np.testing.assert_allclose(
        encode({"image": big_endian, "label": 0}, processor)["pixel_values"][0], expected, atol=1e-6
    )


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_of_an_uncertain_range_are_refused(kind):
    rows = [{"image": picture(0), "label": 0}, {"image": PILImage.fromarray(np.ones((16, 16), kind)), "label": 0}]
    with pytest.raises(ValueError, match="Row 1 of the forget set: .* range is not certain. Scale it to 8 bit"):
        list(encode_dataset(rows, PROCESSOR, name="forget set"))


def test_an_image_is_turned_as_its_file_says():
    image, exif = picture(0), PILImage.Exif()
    exif[0x0112] = 6  # a camera held upright: turn it clockwise by 90 degrees
    turned = encode({"image": image.transpose(PILImage.Transpose.ROTATE_270), "label": 0}, PROCESSOR)["pixel_values"]
    assert not torch.equal(turned, encode({"image": image, "label": 0}, PROCESSOR)["pixel_values"])
    for row in ways(image, exif=exif):
        assert torch.equal(encode(row, PROCESSOR)["pixel_values"], turned)


def test_transparency_is_left_out_as_by_other_loaders():
    image = picture(0, "RGBA")
    image.putalpha(PILImage.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    assert all(torch.equal(encode(row, PROCESSOR)["pixel_values"], opaque(image)) for row in ways(image))
    cast = Dataset.from_dict({"image": [png(image)]}, Features({"image": Image(mode="RGB")}))[0]["image"]
    assert torch.equal(encode({"image": cast, "label": 0}, PROCESSOR)["pixel_values"], opaque(image))


def opaque(image: PILImage.Image) -> torch.Tensor:
    rgb = PILImage.fromarray(np.asarray(image)[..., :3])
    return encode({"image": rgb, "label": 0}, PROCESSOR)["pixel_values"]


# Channels


def gray_vit():
    config = tiny_vit().config
    return type(tiny_vit())(type(config)(**{**config.to_dict(), "num_channels": 1}))


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"do_normalize": False}])
def test_a_processor_with_one_mean_makes_gray_images(mode, options):
    image = picture(0, mode)
    pixels = encode({"image": image, "label": 0}, Processor(size=SIZE, **GRAY, **options))["pixel_values"]
    gray = np.asarray(image.convert("RGB").convert("L"), dtype=np.float64) / 255
    assert pixels.shape == (1, 16, 16)
    np.testing.assert_allclose(pixels[0].numpy(), gray if options else gray * 2 - 1, atol=1e-6)


def test_a_model_for_gray_images_is_trained_and_audited(tmp_path):
    from hf_unlearn import NPOConfig, NPOTrainer
    from hf_unlearn.audit import score

    rows = [{"image": picture(i, "L"), "label": i % 5} for i in range(8)]
    args = NPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    model, gray = gray_vit(), Processor(size=SIZE, **GRAY)
    NPOTrainer(model, args, rows[:4], rows[4:], processing_class=gray).train()
    assert np.isfinite(score(model, gray, rows).log_prob).all()


def test_channels_that_do_not_fit_the_model_are_refused_before_the_first_step(tmp_path):
    from hf_unlearn import NPOConfig, NPOTrainer
    from hf_unlearn.audit import score

    said = "pixels of the forget set have {} but the model takes {}. Give a processor"
    rows = [{"image": picture(i), "label": i % 5} for i in range(8)]
    gray = Processor(size=SIZE, **GRAY)
    args = NPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    for model, processor, counts in (
        (gray_vit(), PROCESSOR, ("3 channels,", "1 channel")),
        (tiny_vit(), gray, ("1 channel,", "3 channels")),
    ):
        encoded = [encode(row, processor) for row in rows]
        for given in (rows, encoded):
            with pytest.raises(ValueError, match=said.format(*counts)):
                NPOTrainer(model, args, given[:4], given[4:], processing_class=processor)
            with pytest.raises(ValueError, match="have {} but the model takes {}.".format(*counts)):
                score(model, processor, given)


def test_rows_of_every_kind_are_the_same():
    rows = table()
    file = io.BytesIO()
    picture(1).save(file, format="PNG")
    undecoded = rows.cast_column("image", Image(decode=False))
    pixels = ImageRows(rows, PROCESSOR)[1]["pixel_values"]
    others = [
        ImageRows(undecoded, PROCESSOR)[1],
        ImageRows(list(rows), PROCESSOR)[1],
        ImageRows(table(label="labels"), PROCESSOR)[1],
        encode({"image": {"bytes": file.getvalue(), "path": None}, "labels": 1}, PROCESSOR),
    ]
    for row in others:
        assert torch.equal(row["pixel_values"], pixels) and row["labels"] == 1


def test_an_image_is_encoded_when_it_is_read_and_small_ones_are_kept():
    processor = Counting(size=SIZE)
    size = 3 * 16 * 16 * 4
    rows = ImageRows(table(6), processor, cache_bytes=2 * size + 1)
    assert len(rows) == 6 and processor.calls == 0
    first = [row["pixel_values"] for row in rows]
    assert processor.calls == 6
    second = [row["pixel_values"] for row in rows]
    assert processor.calls == 6 + 4  # two were kept
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(rows[-1]["pixel_values"], first[5])
    with pytest.raises(IndexError):
        rows[6]


def test_encode_dataset_gives_lazy_rows_and_lets_encoded_ones_pass():
    rows = encode_dataset(table(), PROCESSOR)
    assert isinstance(rows, ImageRows)
    assert encode_dataset(rows, None) is rows
    encoded = list(rows)
    again = encode_dataset(encoded, None)
    assert all(
        a is not None and torch.equal(a["pixel_values"], b["pixel_values"])
        for a, b in zip(again, encoded, strict=True)
    )
    assert isinstance(encode_dataset(list(table()), PROCESSOR), ImageRows)


def test_paired_and_collated_as_encoded_rows_are():
    rows = encode_dataset(table(), PROCESSOR)
    lazy, eager = (PairedDataset(side, side, seed=1) for side in (rows, list(rows)))
    batches = [UnlearningCollator()([data[i] for i in range(4)]) for data in (lazy, eager)]
    assert batches[0]["pixel_values"].shape == (8, 3, 16, 16) and batches[0]["labels"].shape == (8,)
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in ("pixel_values", "labels"))


SECRET = "ada-lovelace"


def broken_file(tmp_path):
    path = tmp_path / f"{SECRET}.png"
    path.write_bytes(b"no image " + SECRET.encode())
    return {"image": {"bytes": None, "path": str(path)}, "label": 0}


@pytest.mark.parametrize(
    ("row", "processor", "message"),
    [
        ({"image": picture(0), "label": 0}, None, "no image processor was given"),
        ({"image": picture(0), "label": 0}, object(), "a object was given"),
        ({"image": picture(0)}, PROCESSOR, "needs its class in the column label or labels"),
        ({"image": picture(0), "label": SECRET}, PROCESSOR, "of type str"),
        ({"image": picture(0), "label": True}, PROCESSOR, "of type bool"),
        ({"image": picture(0), "label": -1}, PROCESSOR, "not the index of one of 5 classes"),
        ({"image": picture(0), "label": 5}, PROCESSOR, "not the index of one of 5 classes"),
        ({"image": SECRET, "label": 0}, PROCESSOR, "holds str, not an image"),
        (broken_file, PROCESSOR, "cannot be decoded"),
        ({"image": {"bytes": SECRET.encode(), "path": None}, "label": 0}, PROCESSOR, "cannot be decoded"),
    ],
)
def test_errors_name_the_row_and_not_its_content(row, processor, message, tmp_path):
    row = row(tmp_path) if callable(row) else row
    rows = [{"image": picture(0), "label": 0}] * 2 + [row]
    with pytest.raises(ValueError, match=message) as error:
        list(encode_dataset(rows, processor, name="forget set", n_classes=5))
    wants_processor = "image processor" in message or "was given" in message
    assert f"Row {0 if wants_processor else 2} of the forget set:" in str(error.value)
    assert SECRET not in str(error.value) and error.value.__cause__ is None


def test_labels_are_checked_before_any_image_is_read():
    processor = Counting(size=SIZE)
    with pytest.raises(ValueError, match="Row 4 of the retain set: The label is not the index of one of 4 classes"):
        encode_dataset(table(), processor, name="retain set", n_classes=4)
    with pytest.raises(ValueError, match="Row 0 of the retain set: An image row needs its class"):
        encode_dataset(table().remove_columns("label"), processor, name="retain set")
    assert processor.calls == 0


def test_a_tokenizer_is_no_image_processor():
    with pytest.raises(ValueError, match=f"a {type(tiny_tokenizer()).__name__} was given"):
        encode({"image": picture(0), "label": 0}, tiny_tokenizer())


# Augmentation


def crops(pixels: torch.Tensor, pad: int) -> list[torch.Tensor]:
    """All outcomes, from indices: what comes from outside is 0."""
    height, width = pixels.shape[1:]
    found = []
    for source in (pixels, pixels[:, :, torch.arange(width - 1, -1, -1)]):
        for dy in range(-pad, pad + 1):
            for dx in range(-pad, pad + 1):
                out = torch.zeros_like(pixels)
                for y in range(max(0, -dy), min(height, height - dy)):
                    for x in range(max(0, -dx), min(width, width - dx)):
                        out[:, y, x] = source[:, y + dy, x + dx]
                found.append(out)
    return found


def test_augmentation_shifts_and_flips_and_reaches_every_outcome():
    pixels = torch.arange(1, 49, dtype=torch.float32).reshape(3, 4, 4)
    rows = AugmentedRows([{"pixel_values": pixels, "labels": 2}] * 400, pad=1)
    outcomes = {tuple(out.flatten().tolist()) for out in crops(pixels, 1)}
    drawn = [rows[i] for i in range(400)]
    assert {tuple(row["pixel_values"].flatten().tolist()) for row in drawn} == outcomes and len(outcomes) == 18
    assert {row["labels"] for row in drawn} == {2}
    assert torch.equal(pixels, torch.arange(1, 49, dtype=torch.float32).reshape(3, 4, 4))


def test_augmentation_is_a_function_of_seed_epoch_and_index():
    def draw(seed, epoch, order=range(30)):
        rows = AugmentedRows(list(ImageRows(table(30), PROCESSOR)), seed)
        rows.set_epoch(epoch)
        return torch.stack([rows[i]["pixel_values"] for i in sorted(order)])

    once = draw(0, 0)
    assert torch.equal(once, draw(0, 0, order=reversed(range(30))))
    assert not torch.equal(once, draw(0, 1)) and not torch.equal(once, draw(1, 0))


def test_the_trainer_moves_the_epoch_on(tmp_path):
    rows = AugmentedRows(encode_dataset(table(8), PROCESSOR))
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    Trainer(tiny_vit(), arguments, train_dataset=rows, data_collator=UnlearningCollator()).train()
    assert int(rows._epoch) == 2


# Loading


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_parquet_and_a_folder_of_images_leave_nothing_in_a_cache(tmp_path, cache):
    (tmp_path / "parquet").mkdir()
    table(10).to_parquet(tmp_path / "parquet" / "train.parquet")
    for i in range(10):
        folder = tmp_path / "folder" / "train" / "abcde"[i % 5]
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    rows = [load_rows(str(tmp_path / name)) for name in ("parquet", "folder", "parquet/train.parquet")]
    assert all(side.features["label"].names == list("abcde") for side in rows)
    pixels = [
        sorted((row["labels"], row["pixel_values"].flatten().tolist()) for row in encode_dataset(side, PROCESSOR))
        for side in rows
    ]
    assert pixels[0] == pixels[1] == pixels[2] and len(pixels[0]) == 10
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_encoded_columns_of_a_table_pass_through():
    features = Features({"pixel_values": Array3D((3, 4, 4), "float32"), "labels": Value("int64")})
    rows = Dataset.from_dict({"pixel_values": np.ones((2, 3, 4, 4), np.float32), "labels": [0, 1]}, features)
    encoded = encode_dataset(rows.with_format("torch"), None)
    assert encoded[1]["pixel_values"].shape == (3, 4, 4) and int(encoded[1]["labels"]) == 1


# The model


def test_the_model_is_a_function_of_the_seed(tmp_path):
    state = torch.get_rng_state()
    (one, processor), (two, _), (other, _) = (
        make_vit(["x", "y"], hidden_size=32, n_layers=1, seed=s) for s in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    pairs = [list(model.parameters()) for model in (one, two, other)]
    assert all(map(torch.equal, pairs[0], pairs[1])) and not all(map(torch.equal, pairs[0], pairs[2]))
    assert one.config.id2label == {0: "x", 1: "y"} and processor.size["height"] == 32
    files = write_vit(tmp_path, ["x", "y"], hidden_size=32, n_layers=1)
    assert {file.name for file in files} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert all(map(torch.equal, loaded.parameters(), pairs[0])) and loaded.config.label2id == {"x": 0, "y": 1}
    row = encode({"image": picture(0, side=20), "label": 1}, AutoImageProcessor.from_pretrained(tmp_path))
    logits = loaded(pixel_values=row["pixel_values"][None]).logits
    assert logits.shape == (1, 2)


@pytest.mark.skipif(DATA is None, reason="needs CIFAR-100 beside the repository")
def test_cifar100_encodes_and_has_the_classes_of_the_recipe():
    rows = load_rows(str(DATA / "cifar100"), "test")
    assert {"tiger", "motorcycle", "lion", "bicycle"} <= set(rows.features["label"].names)
    encoded = encode_dataset(rows, Processor(size={"height": 32, "width": 32}), n_classes=20)
    assert np.bincount(encoded.labels).tolist() == [100] * 20
    for i in (0, 777, 1999):
        np.testing.assert_allclose(encoded[i]["pixel_values"].numpy(), expected(rows[i]["image"]), atol=1e-6)
