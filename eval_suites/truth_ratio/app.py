from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("truth_ratio.py"),
    example={
        "paraphrased": [0.5, 2.0],
        "perturbed": [[1.5, 2.5], [2.0, 2.0]],
        "variant": "tofu",
        "retrained": [0.9, 1.1],
    },
)

if __name__ == "__main__":
    app.launch()
