from pathlib import Path

import gradio as gr
import numpy as np

from hf_unlearn.evaluate_modules.demo import page


def compute(module, reconstruction, original):
    if reconstruction is None or original is None:
        raise ValueError("Give both images.")
    sides = [np.asarray(image)[None].transpose(0, 3, 1, 2) / 255 for image in (reconstruction, original)]
    return module.compute(predictions=sides[0], references=sides[1])


app = page(
    Path(__file__).with_name("reconstruction_attack.py"),
    compute,
    inputs=[gr.Image(label="Reconstruction", image_mode="RGB"), gr.Image(label="Original", image_mode="RGB")],
)

if __name__ == "__main__":
    app.launch()
