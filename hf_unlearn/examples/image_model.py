"""An untrained ViT and its image processor."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_unlearn.data.images import label_names
from hf_unlearn.data.load import load_rows


def make_vit(
    labels: Sequence[str],
    image_size: int = 32,
    patch_size: int = 4,
    hidden_size: int = 128,
    n_layers: int = 4,
    n_heads: int = 4,
    seed: int = 0,
) -> tuple[ViTForImageClassification, ViTImageProcessorPil]:
    """A randomly initialized ViT classifier in float32 on the CPU, and the processor that makes its pixels.

    Args:
        labels (`Sequence[str]`): names of the classes, in the order of their indices.
        image_size, patch_size (`int`, *optional*, default to `32` and `4`): sides in pixels.
        hidden_size, n_layers, n_heads (`int`, *optional*, default to `128`, `4` and `4`): width, depth and attention heads
            per layer. The inner layer of an MLP is four times as wide.
        seed (`int`, *optional*, defaults to `0`): seed of the weights. The global random state does not change.

    Returns:
        `(ViTForImageClassification, ViTImageProcessorPil)`: the processor maps RGB images to `[-1, 1]`.
    """
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the accelerators
        model = ViTForImageClassification(config)
    return model.eval(), ViTImageProcessorPil(size={"height": image_size, "width": image_size})


def write_vit(folder: str | Path, labels: Sequence[str], **size) -> list[Path]:
    """Save the model and the processor of [`make_vit`] with these sizes for `from_pretrained`; returns the files."""
    model, processor = make_vit(labels, **size)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sorted(Path(folder).iterdir())


def main() -> None:
    says = "Write an untrained ViT for the classes of a data set."
    parser = argparse.ArgumentParser(prog="python -m hf_unlearn.examples.image_model", description=says)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dataset_name", required=True, help="Hub id, folder or file with a label column.")
    parser.add_argument("--split", default="train[:1]")
    for name in ("image_size", "patch_size", "hidden_size", "n_layers", "n_heads", "seed"):
        parser.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS)
    args = vars(parser.parse_args())
    labels = label_names(load_rows(args.pop("dataset_name"), args.pop("split")))
    for path in write_vit(args.pop("folder"), labels, **args):
        print(path)


if __name__ == "__main__":
    main()
