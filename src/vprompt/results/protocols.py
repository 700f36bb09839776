"""Protocols: the ones that published numbers on VTAB-1k were made with, by name.

Each follows the public code of its project, which does not always agree with its paper. Other
packages add theirs through entry points of the group `vprompt.protocols`.
"""

from vprompt.core import registry
from vprompt.core.errors import VPromptError
from vprompt.results.protocol import TFDS, Protocol

_VPT = 'Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119; KMnP/vpt'
_VPT_SEEDS = (42, 44, 82, 100, 800)
_PER_TASK = "learning rate and other settings stand in a file per task of the project"
_AVERAGES = "report mean (19) and mean of groups; "

ALL = (
    Protocol(
        "vpt",
        "The released code of VPT, with what changes a result: first epoch at rate 0, ImageNet's "
        "statistics.",
        _VPT,
        interpolation="bilinear",
        antialias=False,
        normalisation="imagenet",
        images=TFDS,
        select_on="val200",
        seeds=_VPT_SEEDS,
        averaging=_AVERAGES + "mean and std (ddof 0) of the last epoch over 5 seeds",
        opt="sgd",
        lrs=(50.0, 25.0, 10.0, 5.0, 2.5, 1.0, 0.5, 0.25, 0.1, 0.05),
        lr_per_256=True,
        weight_decays=(1e-2, 1e-3, 1e-4, 0.0),
        epochs=100,
        warmup_epochs=10,
        per_epoch=True,
        end_lr=0.0,
        batch_size=64,
        large_batch=128,
        precision="fp32",
        prompt_lengths=(1, 5, 10, 50, 100, 200),
        deep_dropout=0.1,
    ),
    Protocol(
        "robust",
        "Recommended here: the backbone's own preprocessing, AdamW, a grid of four.",
        "this library",
        interpolation="bicubic",
        antialias=True,
        normalisation="model",
        images=TFDS,
        select_on="val200",
        seeds=_VPT_SEEDS,
        averaging=_AVERAGES + "mean and std (ddof 1) of the last epoch over 5 seeds",
        opt="adamw",
        lrs=(1e-3, 1e-2),
        weight_decays=(1e-4, 1e-3),
        epochs=100,
        warmup_epochs=10,
        end_lr=1e-5,
        batch_size=64,
        precision="bf16",
        prompt_lengths=(5, 10, 50, 100),
        deep_dropout=0.1,
    ),
    Protocol(
        "hgprompt",
        "HGPrompt as stated: 50 tokens, settings chosen on 800/200, 3 final runs on all 1000.",
        "HGPrompt, arXiv 2504.12311; its code is not public",
        images="not stated",
        select_on="val200",
        averaging="mean of 3 runs; which seeds is not stated",
        prompt_lengths=(50,),
        others=('everything else "follows the original configurations", which are not named',),
    ),
    Protocol(
        "noah",
        "NOAH: AdamW with one learning rate; normalisation differs between its own scripts.",
        'Zhang et al., "Neural Prompt Search", arXiv 2206.04673; ZhangYuanhan-AI/NOAH',
        interpolation="bicubic",
        normalisation="imagenet",
        normalisation_of={"vpt": "half"},
        opt="adamw",
        lrs=(1e-3,),
        weight_decays=(1e-4,),
        epochs=100,
        batch_size=64,
    ),
    Protocol(
        "fact",
        "FacT: ImageNet's statistics, settings per task.",
        'Jie and Deng, "FacT", AAAI 2023; JieShibo/PETL-ViT',
        interpolation="bicubic",
        normalisation="imagenet",
        others=(_PER_TASK,),
    ),
    Protocol(
        "binary-adapter",
        "Binary adapters: pixels in [0, 1] without normalisation.",
        'Jie et al., "Revisiting the Parameter Efficiency of Adapters", ICCV 2023; '
        "JieShibo/PETL-ViT",
        normalisation="none",
    ),
    Protocol(
        "ssf",
        "SSF: the AugReg checkpoint, a learning rate per task, no validation.",
        'Lian et al., "Scaling and Shifting Your Features", NeurIPS 2022; dongzelian/SSF',
        backbone="vit_base_patch16_224.augreg_in21k",
        normalisation="half",
        others=(_PER_TASK,),
    ),
    Protocol(
        "adapter+",
        "Adapter+ and its re-run of VPT: the model's own statistics, bf16.",
        'Steitz and Roth, "Adapters Strike Back", CVPR 2024, arXiv 2406.06820; visinf/adapter_plus',
        normalisation="model",
        images=TFDS,
        seeds=(18, 45, 25),
        opt="adamw",
        lrs=(1e-3,),
        weight_decays=(1e-4,),
        epochs=100,
        warmup_epochs=10,
        batch_size=64,
        precision="bf16",
        deep_dropout=0.1,
        others=(
            "drop-path of 0.1 on the frozen backbone",
            "the last batch of an epoch is dropped if it is not full",
            "the bound of random prompts depends on their number, not on the width",
        ),
    ),
    Protocol(
        "v-petl",
        "V-PETL bench: ImageNet's statistics, settings per task.",
        'Xin et al., "V-PETL Bench", NeurIPS 2024; '
        "synbol/Parameter-Efficient-Transfer-Learning-Benchmark",
        normalisation="imagenet",
        others=(_PER_TASK,),
    ),
    Protocol(
        "osu",
        "Mai et al.: AdamW, a grid of four, pixels in [0, 1], one final run.",
        'Mai et al., "Lessons and Insights from a Unifying Study of PEFT in Visual Recognition", '
        "CVPR 2025, arXiv 2409.16434; OSU-MLB/ViT_PEFT_Vision",
        interpolation="bicubic",
        normalisation="none",
        images="JPEG copy of VTAB-1k, or TFDS",
        select_on="val200",
        seeds=(42,),
        averaging="one run per task; the best test epoch is printed too, for calibration only",
        opt="adamw",
        lrs=(1e-3, 1e-2),
        weight_decays=(1e-4, 1e-3),
        epochs=100,
        warmup_epochs=10,
        end_lr=1e-5,
        batch_size=64,
        prompt_lengths=(5, 10, 50, 100),
        deep_dropout=0.1,
        others=(
            "drop-path of 0.1 on the frozen backbone",
            "prompt dropout has one mask per batch, not one per image",
        ),
    ),
)


def known() -> dict[str, Protocol]:
    """Return every protocol by name: those above, and those of other packages."""
    others = [entry.load() for entry in registry.installed("protocols")]
    return {each.name: each for each in (*ALL, *others)}


def find(name: str) -> Protocol:
    """Return a protocol by name; an unknown one is answered with the nearest known."""
    protocols = known()
    if name not in protocols:
        raise VPromptError(f"No protocol called {name!r}.{registry.suggest(name, protocols)}")
    return protocols[name]


def entries() -> list[dict[str, str | None]]:
    """Return what `vprompt list` shows: every protocol with the settings that are known of it."""
    return [
        {
            "kind": "protocols",
            "name": each.name,
            "settings": f"({_settings(each)})",
            "summary": each.summary,
            "reference": each.reference,
        }
        for each in known().values()
    ]


def _settings(protocol: Protocol) -> str:
    left_out = ("name", "summary", "reference", "averaging", "others")
    plain = Protocol("", "", "", backbone="").settings()
    known = {key: value for key, value in protocol.settings().items() if value != plain[key]}
    return ", ".join(f"{key}={value}" for key, value in known.items() if key not in left_out)
