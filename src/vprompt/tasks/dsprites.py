"""dSprites: white shapes on black that tell position and orientation, drawn here, not downloaded.

The images are dSprites-like: drawn from the published factors (3 shapes, 6 scales, 40
orientations, 32 x 32 positions), not taken from the published arrays. Three things differ: edges
are smooth where the original is binary, the 40 orientations leave out 360 degrees, which repeats
0 in the original, and the classes are balanced.

As in the original, a square looks the same every 90 degrees and an ellipse every 180, but their
orientation labels differ, so on `orientation` no classifier can be right more often than about
(1/4 + 1/2 + 1) / 3 = 58 % of the time.

Reference: Matthey et al., "dSprites: Disentanglement testing Sprites dataset", 2017.
"""

import numpy as np
from numpy.typing import NDArray

from vprompt.core.errors import VPromptError
from vprompt.core.randomness import numpy_stream
from vprompt.core.registry import suggest
from vprompt.data.census import Reading
from vprompt.data.task import SealedSplit, Split, Task

SHAPES = ("square", "ellipse", "heart")
COUNTS = (len(SHAPES), 6, 40, 32, 32)  # shape, scale, orientation, x, y
CLASSES = {
    "location": tuple(f"x positions {2 * k} and {2 * k + 1} of 32" for k in range(16)),
    "orientation": tuple(f"{22.5 * k:g} to {22.5 * (k + 1):g} degrees" for k in range(16)),
}
MOST = 20_000  # beyond it, so many squares repeat that hearts would crowd them out
_SIZE, _FINE = 64, 3  # pixels, and samples per pixel along each side
_PERIODS = np.array([10, 20, 40])  # orientation steps after which a shape looks the same


def load(
    *,
    target: str = "location",
    split_seed: int = 0,
    train: int = 800,
    val: int = 200,
    test: int = 1000,
) -> Task:
    """Return 16 classes of the x position (`location`) or of the `orientation`, 64 x 64 pixels.

    `split_seed` decides which images are drawn; no image occurs twice, within a split or across.
    """
    if target not in CLASSES:
        raise VPromptError(f"dSprites has no target {target!r}.{suggest(target, CLASSES)}")
    sizes = {"train": train, "val": val, "test": test}
    _check_sizes(sizes)
    factors, labels = _draw_factors(target, sum(sizes.values()), split_seed)
    edges = np.cumsum([train, val])
    parts = zip(sizes, np.split(factors, edges), np.split(labels, edges), strict=True)
    splits = {
        name: Split(name, _draw_images(part), tuple(part_labels.tolist()))
        for name, part, part_labels in parts
        if len(part)
    }
    return Task(
        name=f"dsprites_{target}",
        classes=CLASSES[target],
        train=splits["train"],
        val=splits.get("val"),
        test=SealedSplit(splits["test"]) if "test" in splits else None,
        facts={
            "source": "dSprites-like images, drawn by vprompt from the published factors",
            "target": target,
            "splits": "distinct images, classes balanced",
            "split_seed": split_seed,
            "sizes": sizes,
        },
        reading=Reading(f"drawn, classes balanced, by seed {split_seed}"),
    )


def _check_sizes(sizes: dict[str, int]) -> None:
    if sizes["train"] < 32 or min(sizes.values()) < 0 or sum(sizes.values()) > MOST:
        listing = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise VPromptError(
            f"Cannot draw {listing}: train needs at least 32 images (two of each of 16 classes), "
            f"no size is negative, and the sum is at most {MOST}."
        )


def _draw_factors(
    target: str, count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = numpy_stream(seed, f"dsprites {target}")
    # Twice as many as asked, since repeats go and the smallest class must still suffice.
    codes = rng.choice(np.prod(COUNTS), 2 * count + 2000, replace=False)
    factors = np.stack(np.unravel_index(codes, COUNTS), axis=1)
    looks = factors.copy()
    looks[:, 2] %= _PERIODS[factors[:, 0]]
    _, first = np.unique(looks, axis=0, return_index=True)
    factors = factors[np.sort(first)]
    labels = factors[:, 3] // 2 if target == "location" else factors[:, 2] * 16 // 40
    turn = np.empty(len(labels), dtype=np.int64)
    for label in range(16):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows))
    chosen = np.argsort(turn, kind="stable")[:count]  # the classes take turns
    return factors[chosen], labels[chosen]


def _draw_images(factors: NDArray[np.int64], batch: int = 32) -> NDArray[np.uint8]:
    images = np.empty((len(factors), _SIZE, _SIZE, 3), dtype=np.uint8)
    for start in range(0, len(factors), batch):
        part = factors[start : start + batch]
        images[start : start + batch] = _coverage(part)[..., None]
    return images


def _coverage(factors: NDArray[np.int64]) -> NDArray[np.uint8]:
    # Centres run from pixel 16 to 48 and no shape reaches 16 pixels from its centre: all fit.
    shape = factors[:, 0]
    scale = np.linspace(0.5, 1.0, 6, dtype=np.float32)[factors[:, 1]][:, None, None]
    step = factors[:, 2] % _PERIODS[shape]  # or rounding would tell 90 degrees from 0
    angle = (step * (2 * np.pi / 40)).astype(np.float32)[:, None, None]
    centres = np.linspace(16, 48, 32, dtype=np.float32)
    grid = (np.arange(_SIZE * _FINE, dtype=np.float32) + 0.5) / _FINE
    x = (grid[None, None, :] - centres[factors[:, 3]][:, None, None]) / scale
    y = (grid[None, :, None] - centres[factors[:, 4]][:, None, None]) / scale
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    inside = np.empty(along.shape, dtype=bool)
    for index, function in enumerate((_square, _ellipse, _heart)):
        rows = shape == index
        inside[rows] = function(along[rows], across[rows])
    tiles = inside.reshape(len(factors), _SIZE, _FINE, _SIZE, _FINE)
    return np.round(tiles.mean(axis=(2, 4)) * 255).astype(np.uint8)


def _square(along: NDArray[np.float32], across: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.maximum(np.abs(along), np.abs(across)) <= 11


def _ellipse(along: NDArray[np.float32], across: NDArray[np.float32]) -> NDArray[np.bool_]:
    return (along / 15) ** 2 + (across / 8) ** 2 <= 1


def _heart(along: NDArray[np.float32], across: NDArray[np.float32]) -> NDArray[np.bool_]:
    u, v = along / 11, -across / 11  # the image's y axis points down
    u_squared, v_squared = u * u, v * v
    ball = u_squared + v_squared - 1
    return ball * ball * ball <= u_squared * v_squared * v
