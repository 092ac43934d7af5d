from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("perplexity.py"),
    example={"predictions": [[-1.0, -1.0, -1.0], [-3.0]]},
)

if __name__ == "__main__":
    app.launch()
