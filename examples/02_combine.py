"""Learn two source prompts, then combine them for a third task and look at the weights."""

import tempfile
from pathlib import Path

import vprompt

folder = Path(tempfile.mkdtemp())
config = vprompt.TrainConfig(epochs=1, lr=1e-3)
for source in ("dsprites(target=location, train=160)", "dsprites(target=orientation, train=160)"):
    name = "location" if "location" in source else "orientation"
    vprompt.learn(source, model="tiny", config=config, output=folder / "pool" / name, test=False)

outcome = vprompt.combine(
    "digits", pool=folder / "pool", method="hgprompt", config=config, shots=10
)
for source in outcome.run["transfer"]["sources"]:
    print(f"{source['name']:<12} weight {source['weight']:.3f}  H-score {source['hscore']:.3f}")
for name, found in outcome.test.items():
    print(f"{name:<28} {100 * found.acc1:.1f} %")

vprompt.write_report(outcome.run, folder / "report.html")
