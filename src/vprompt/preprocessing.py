"""Preprocessing: how pixels become the input of one backbone, as plain numbers."""

import math
from dataclasses import asdict, dataclass
from typing import Any

Range = tuple[float, float]


@dataclass(frozen=True)
class Values:
    """Which values become black and white in images of more than 8 bits a channel.

    `integer` is for whole numbers, `real` for floats; without one, each image is left to itself.
    The keys are ours: timm knows images of 8 bits alone.
    """

    integer: Range | None = None
    real: Range | None = None

    def to_json(self) -> dict[str, list[float]]:
        """Return plain lists; a range that is not given is left out."""
        return {key: list(value) for key, value in vars(self).items() if value is not None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Values":
        """Read what `to_json` wrote; raises ValueError where it is no range."""
        if not isinstance(values, dict):
            raise ValueError(f"its ranges of values are {values!r}")
        found = {}
        for key in ("integer", "real"):
            if values.get(key) is not None:
                low, high = (float(v) for v in values[key])
                if not (math.isfinite(low) and math.isfinite(high) and low < high):
                    raise ValueError(f"its range of values is {values[key]}")
                found[key] = (low, high)
        return cls(**found)


@dataclass(frozen=True)
class DataConfig:
    """How pixels become a backbone's input; the keys and values are timm's.

    `crop_mode` is `squash` (resize both sides, aspect ignored, as the VTAB protocols do) or
    `center` (resize the shorter side to size / crop_pct, then cut the centre). `values` is a range
    that an artefact's training images had; a backbone has none.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float = 1.0
    crop_mode: str = "squash"
    values: Values | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and numbers, as they stand in `adapter_config.json`."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        del plain["values"]
        return plain if self.values is None else {**plain, "value_range": self.values.to_json()}

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
            values=Values.from_json(values["value_range"]) if "value_range" in values else None,
        )
