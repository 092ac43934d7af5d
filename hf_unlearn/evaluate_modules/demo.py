"""Pages that try the modules of `eval_suites` in the browser, for the Spaces of the Hub (extra `demo`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import evaluate
from evaluate.utils.gradio import parse_readme


def demo(file: str | Path, example: Mapping[str, Any]):
    """The page of a module: its inputs as JSON on the left, its results on the right, and its card below them.

    Args:
        file (`str` or `Path`): the module, with its card, `README.md`, beside it.
        example (`dict`): the inputs that the page begins with. No other inputs can be given, so that a public page does not
            load whatever model somebody names.

    Returns:
        `gradio.Interface`: `launch()` serves it, with an API at `/compute`.
    """
    gr = _gradio()

    def compute(module, inputs: str) -> dict:
        given = json.loads(inputs)
        if not isinstance(given, dict) or set(given) - set(example):
            raise ValueError(f"Give a JSON object with {', '.join(example)}, and nothing else.")
        return module.compute(**given)

    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in example.items())
    return page(file, compute, [gr.Code(value=f"{{\n{lines}\n}}", language="json", label="Inputs")])


def page(file: str | Path, compute: Callable[..., dict], inputs: list):
    """A page whose inputs are not JSON.

    Args:
        file: as for [`demo`].
        compute (`Callable`): gives the results from the module and the values of the inputs. A `ValueError` is shown to the
            user.
        inputs (`list`): components of gradio.
    """
    gr, module = _gradio(), evaluate.load(str(file))

    def shown(*values) -> dict:
        try:
            return compute(module, *values)
        except (ValueError, TypeError) as error:
            # Without the traceback, which would be written to the log of the Space.
            raise gr.Error(str(error), print_exception=False) from None

    return gr.Interface(
        shown,
        inputs=inputs,
        outputs=gr.JSON(label="Results"),
        title=module.name.replace("_", " ").capitalize(),
        description=module.description.strip(),
        article=parse_readme(Path(file).with_name("README.md")),
        api_name="compute",
        flagging_mode="never",
        analytics_enabled=False,
    )


def _gradio():
    try:
        import gradio
    except ImportError:
        raise ImportError("The page of a module needs gradio. Install it: pip install 'hf-unlearn[demo]'.") from None
    return gradio
