from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("exposure.py"),
    example={"predictions": [1.0, 6.5], "candidates": [5.0, 6.0, 7.0], "planted": [True, False], "method": "rank"},
)

if __name__ == "__main__":
    app.launch()
