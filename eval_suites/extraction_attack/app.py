from pathlib import Path

from hf_unlearn.evaluate_modules.demo import demo


app = demo(
    Path(__file__).with_name("extraction_attack.py"),
    example={
        "predictions": ["in the old town of Delft and", "by the sea"],
        "references": ["in the old town of Delft", "near the sea"],
    },
)

if __name__ == "__main__":
    app.launch()
