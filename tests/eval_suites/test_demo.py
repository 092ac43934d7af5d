"""The pages of the modules, asked over HTTP as a browser would."""

import json
import runpy
import urllib.request

import numpy as np
import pytest
from PIL import Image

from hf_unlearn.evaluate_modules.base import EVAL_SUITES, load_metric, metric_names


pytest.importorskip("gradio", reason="needs the extra demo")


@pytest.fixture
def ask():
    """Starts the page of a module, and gives a function that sends it inputs."""
    pages = []

    def start(name):
        page = runpy.run_path(str(EVAL_SUITES / name / "app.py"))["app"]
        pages.append(page)
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", share=False)

        def send(inputs: str):
            data = json.dumps({"data": [inputs]}).encode()
            request = urllib.request.Request(
                f"{url}gradio_api/call/compute", data, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as response:
                event = json.load(response)["event_id"]
            with urllib.request.urlopen(f"{url}gradio_api/call/compute/{event}") as response:
                kind, data = response.read().decode().strip().split("\n")[-2:]
            return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

        return page, send

    yield start
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", [name for name in metric_names() if name != "reconstruction_attack"])
def test_a_page_computes_its_example_over_http(name, ask):
    page, send = ask(name)
    example = page.input_components[0].value
    kind, data = send(example)
    assert kind == "complete"
    expected = load_metric(name).compute(**json.loads(example))
    assert set(data[0]) == set(expected)
    for key, value in expected.items():
        if isinstance(value, float) and value == value and abs(value) < float("inf"):
            assert data[0][key] == pytest.approx(value, rel=1e-12)
        elif isinstance(value, (str, int)):
            assert data[0][key] == value
    assert "## Reading the result" in page.article and "sdk:" not in page.article


def test_a_page_answers_mistakes_and_loads_no_model_that_somebody_names(ask):
    _, send = ask("membership_inference")
    for inputs, message in [
        ("{", ""),
        ("[1]", "Give a JSON object with predictions, references, fprs, and nothing else."),
        ('{"examples": ["a"], "references": [1], "model": "gpt2"}', "and nothing else"),
        ('{"predictions": ["a secret"], "references": [1]}', "The inputs do not fit"),
    ]:
        kind, data = send(inputs)
        assert kind == "error" and message in str(data) and "a secret" not in str(data)


def test_a_page_compares_two_images_over_http(ask, tmp_path):
    from gradio_client import Client, handle_file

    page, _ = ask("reconstruction_attack")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(2)]
    images[1] = np.clip(images[0] + rng.integers(-3, 4, (12, 12, 3)), 0, 255).astype(np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    client = Client(page.local_url, verbose=False)
    results = client.predict(*(handle_file(tmp_path / f"{i}.png") for i in (1, 0)), api_name="/compute")
    error = np.square(images[1] / 255 - images[0] / 255).mean()
    assert results["psnr"] == pytest.approx(-10 * np.log10(error)) and 0.9 < results["ssim"] < 1
    assert "## Reading the result" in page.article
