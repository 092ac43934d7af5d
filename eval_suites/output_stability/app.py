from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("output_stability.py"),
    example={
        "predictions": [[-0.7, -1.4, -1.4], [-2.3, -0.2, -2.3]],
        "references": [[-1.4, -0.7, -1.4], [-2.3, -0.2, -2.3]],
    },
)

if __name__ == "__main__":
    app.launch()
