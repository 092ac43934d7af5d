from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("membership_inference.py"),
    example={
        "predictions": [-0.1, -0.2, -0.9, -0.5, -1.1, -2.0],
        "references": [1, 1, 1, 0, 0, 0],
        "fprs": [0.5],
    },
)

if __name__ == "__main__":
    app.launch()
