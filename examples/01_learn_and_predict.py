"""Learn a prompt on a built-in task with a tiny random backbone, then label images with it."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import vprompt

folder = Path(tempfile.mkdtemp())
config = vprompt.TrainConfig(epochs=2, lr=1e-3)
outcome = vprompt.learn("digits", model="tiny", config=config, shots=10, output=folder / "prompt")
print(f"test accuracy {100 * outcome.test['learned'].acc1:.1f} %")

picture = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
Image.fromarray(picture).save(folder / "picture.png")
for prediction in vprompt.predict([folder / "picture.png"], artifact=folder / "prompt"):
    print(Path(prediction.image).name, prediction.label, f"{prediction.probability:.2f}")
