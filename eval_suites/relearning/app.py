from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("relearning.py"),
    example={
        "predictions": [[0.1, 0.8, 1.0], [0.0, 0.6, 1.0]],
        "references": [[0.1, 0.1, 0.3], [0.0, 0.1, 0.1]],
        "original": [1.0, 1.0],
        "steps": [0, 5, 10],
        "share": 0.7,
    },
)

if __name__ == "__main__":
    app.launch()
