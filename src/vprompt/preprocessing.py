"""Preprocessing: how pixels become the input of one backbone, as plain numbers."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DataConfig:
    """How pixels become a backbone's input; the keys and values are timm's.

    `crop_mode` is `squash` (resize both sides, aspect ignored, as the VTAB protocols do) or
    `center` (resize the shorter side to size / crop_pct, then cut the centre).
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    crop_mode: str = "squash"

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, as they stand in `adapter_config.json`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataConfig":
        """Read what `to_json` wrote."""
        return cls(
            input_size=tuple(int(v) for v in values["input_size"]),  # type: ignore[arg-type]
            interpolation=str(values["interpolation"]),
            mean=tuple(float(v) for v in values["mean"]),  # type: ignore[arg-type]
            std=tuple(float(v) for v in values["std"]),  # type: ignore[arg-type]
            crop_pct=float(values.get("crop_pct", 1.0)),
            crop_mode=str(values.get("crop_mode", "squash")),
        )
