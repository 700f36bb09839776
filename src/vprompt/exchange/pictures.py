"""Pictures: real photographs to compare two models on."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vprompt.core.errors import VPromptError
from vprompt.data.decoding import read_rgb
from vprompt.data.preprocessing import DataConfig, Values

_MOST = 32


def real_images(files: Sequence[Path], config: DataConfig) -> list[Image.Image]:
    """Return the images of files, or else scikit-learn's photographs and parts of them."""
    if files:
        return [_read(Path(path).expanduser(), config) for path in files[:_MOST]]
    from sklearn.datasets import load_sample_images

    found = []
    for pixels in load_sample_images().images:
        whole = Image.fromarray(pixels)
        wide, tall = whole.size
        found += [
            whole,
            whole.crop((0, 0, wide // 2, tall)),
            whole.crop((wide // 3, 0, wide, tall)),
        ]
    return found


def _read(path: Path, config: DataConfig) -> Image.Image:
    try:
        return read_rgb(path, config.values or Values())
    except VPromptError:
        raise
    except Exception as error:  # broken files make Pillow raise almost anything
        raise VPromptError(f"{path} cannot be read as an image ({error}).") from None
