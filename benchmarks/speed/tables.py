"""The table of speed, from results/speed, with nothing that they do not hold."""

from pathlib import Path
from typing import Any

from benchmarks.paired import interval
from vprompt.results.records import Records

RATIOS = {
    "step": {
        "over_timm": "step of VPT-Deep: concatenation with timm's own blocks over ours, fp32",
        "over_classical": "the same: classical (attention maps kept) over ours, fp32",
        "bf16_over_classical": "the same: classical in fp32 over ours in bf16",
        "bf16_over_timm_bf16": "the same: timm's own blocks over ours, both bf16",
    },
    "last_block": {
        "over_whole": "step in fp32, last block cut to the pooled token: whole over cut",
        "over_timm": "the same run: concatenation with timm's own blocks over ours",
        "over_classical": "the same run: classical (attention maps kept) over ours",
    },
    "precision": {
        "train": "training step: fp32 over bf16",
        "features": "features: fp32 over bf16",
        "attention_bf16_fused_over_written_out": "attention, bf16: torch's kernel over written out",
        "attention_fp32_fused_over_written_out": "attention, fp32: torch's kernel over written out",
    },
    "prefix": {"with_the_cache": "epoch from the second on, prompts from the middle block: cache"},
    "many": {
        "many_throughput": "throughput of many prompts in a batch, of that of one",
        "ragged_throughput": "the same, 1 to 19 tokens a block",
        "shallow_throughput": "the same, shallow prompts",
        "evidence_one_batch": "gradients of all sources, few images each: one batch",
    },
    "texts": {
        "text_prompts": "step of clip_deep, 49 classes, 4 images: text prompts over none",
        "every_text_by_itself": "the same run: texts not read as a tree, over no text prompts",
    },
}


def speed_tables(folder: Path) -> str:
    """Return the ratios, the seconds of commands, the memory and the profile; empty without any."""
    found = dict(Records(folder).find())
    if not found:
        return ""
    parts = [_machines(found), _ratios(found)]
    for name, table in (
        ("step", _memory),
        ("artefacts", _commands),
        ("scores", _scores),
        ("profile", _profile),
        ("fleet-cpu", _fleet),
        ("grids-commands", _grid_of_commands),
        ("grids-halving", _halving),
        ("second-order", _second_order),
        ("beside", _beside),
        ("serving", _served),
    ):
        if name in found:
            parts.append(table(found[name]))
    return "## Speed on one machine\n\n" + "\n\n".join(parts) + "\n"


def _fleet(record: dict[str, Any]) -> str:
    """Return how fast many trainings are in one pass, and what memory that takes."""
    lines = [
        f"{record['members']} trainings of {record['method']} on `{record['model']}` at batch "
        f"{record['batch']}, {record['threads']} threads (`python -m benchmarks speed.fleet`):",
        "",
        "| trainings | seconds | times as fast | largest memory so far |",
        "|---|---|---|---|",
    ]
    # As they ran, since memory never falls; a record read back is alphabetical.
    ran = sorted(record["wall_seconds"], key=lambda name: record["peak_mb_after_each"][name])
    for name in ran:
        seconds = record["wall_seconds"][name]
        ratio = record["times_as_fast"]["wall"].get(name)
        told = (
            ""
            if ratio is None
            else f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        )
        memory = record["peak_mb_after_each"][name]
        lines.append(f"| {name} | {seconds['median']:.1f} | {told} | {memory:.0f} MB |")
    return "\n".join(lines)


def _grid_of_commands(record: dict[str, Any]) -> str:
    """Return what a grid takes, and as many commands."""
    one, many = (record["wall_seconds"][n]["median"] for n in ("one grid", "sixteen commands"))
    return (
        f"Sixteen rates in one `vprompt learn --grid` (`python -m benchmarks speed.grids commands`)"
        f": {one:.0f} s; sixteen `vprompt learn`: {many:.0f} s, "
        f"{record['times_as_fast']['median']:.2f} times as long; start-up included, "
        f"{record['times_as_fast']['rounds']} round(s)."
    )


def _halving(record: dict[str, Any]) -> str:
    """Return what a halved grid costs, and how well it chooses."""
    ratio, cases, equal = record["halved_over_one_run"], record["cases"], record["no_worse"]
    arms = ("one", "halved", "full")
    gap = {
        name: interval([100 * (c[name]["halved"] - c[name]["full"]) for c in cases], 1)
        for name in equal
    }
    lines = [
        f"24 settings of {record['method']} with `--halving`, {record['train']} images to train "
        f"on, {record['val']} to choose by, {record['epochs']} epochs "
        f"(`python -m benchmarks speed.grids halving`): {ratio['median']:.1f} times one run "
        f"({ratio['least']:.1f} to {ratio['most']:.1f}) in processor time. Halved less full grid, "
        f"points with a 95 % interval over the {len(cases)} sets: {gap['val_accuracy']} on the "
        f"images chosen by (no worse on {equal['val_accuracy']}), {gap['unseen_accuracy']} on "
        f"{record['unseen']} other validation images (no worse on {equal['unseen_accuracy']}).",
        "",
        "| set | one run, s | halved, s | full, s "
        "| chosen by: usual setting | halved | full grid | others: usual setting | halved "
        "| full grid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        seconds = [f"{case['processor_seconds'][arm]:.0f}" for arm in arms]
        right = [f"{100 * case[name][arm]:.1f} %" for name in equal for arm in arms]
        lines.append(f"| {' | '.join([case['set'], *seconds, *right])} |")
    return "\n".join(lines)


def _second_order(record: dict[str, Any]) -> str:
    """Return on how many sets another step is where AdamW is after three times as many."""
    lines = [
        "Loss on all training images after a third of AdamW's steps, each way at its best rate "
        "(`python -m benchmarks learning.second_order`):",
        "",
        "| way | no larger than AdamW's after all steps | processor time, AdamW's is 1 "
        "| validation, points over AdamW's |",
        "|---|---|---|---|",
    ]
    for name, found in sorted(record["reached"].items(), key=lambda each: -each[1]["there"]):
        share = f"{found['median_share_of_time']:.2f}"
        points = f"{found['mean_points_on_validation']:+.1f}"
        lines.append(f"| {name} | {found['there']} of {found['sets']} sets | {share} | {points} |")
    return "\n".join(lines)


def _beside(record: dict[str, Any]) -> str:
    """Return what a busy process costs a command."""
    lines = [
        "Whole commands alone, and beside a process that keeps one core busy "
        "(`python -m benchmarks speed.beside`):",
        "",
        "| command | alone, s | beside, s | ratio |",
        "|---|---|---|---|",
    ]
    for name, wall in record["wall_seconds"].items():
        ratio = record["beside_over_idle"][name]
        cell = f"{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})"
        alone, beside = (f"{wall[kind]['median']:.1f}" for kind in ("idle", "beside"))
        lines.append(f"| `{name}` | {alone} | {beside} | {cell} |")
    return "\n".join(lines)


def _served(record: dict[str, Any]) -> str:
    """Return what clients of a server saw."""
    memory = ", ".join(f"{each:.0f}" for each in record["resident_mib"])
    return (
        f"`vprompt serve` with `{record['backbone']}`: {record['requests']} requests of "
        f"{record['clients']} clients for {record['artifacts']} artefacts "
        f"(`python -m benchmarks speed.serving`): {record['images_per_second']:.0f} images/s, "
        f"{record['share_of_offline']:.2f} of what `predict` does; half of the answers within "
        f"{record['p50_seconds']:.2f} s and 99 of 100 within {record['p99_seconds']:.2f} s, "
        f"{record['p99_in_full_batches']:.2f} times a full batch of {record['batch_size']}; "
        f"{record['lost']} lost, {record['mixed_up']} mixed up; "
        f"memory before and after each fifth: {memory} MiB."
    )


def _machines(found: dict[str, Any]) -> str:
    seen = sorted({_machine(record["machine"]) for record in found.values()})
    return (
        f"Machine: {'; '.join(seen)}. `python -m benchmarks speed.ratios PART`; alternatives "
        "ran in turn in one process, a ratio is the median over rounds (least to most)."
    )


def _machine(found: dict[str, Any]) -> str:
    threads = f"{found['threads']} threads on {found['cores']} cores"
    return f"{found['processor']} ({_unit(found)}), {threads}"


def _unit(found: dict[str, Any]) -> str:
    """Name what the processor multiplies bf16 with."""
    return "AMX" if found["amx_bf16"] else "AVX512-BF16" if found["avx512_bf16"] else "no bf16"


def _ratios(found: dict[str, Any]) -> str:
    rows = ["| what | ratio | rounds | processor |", "|---|---|---|---|"]
    for part, names in RATIOS.items():
        for name, words in names.items() if part in found else ():
            value = found[part]["ratios"][name]
            cell = f"{value['median']:.2f} ({value['least']:.2f} to {value['most']:.2f})"
            unit = _unit(found[part]["machine"])
            rows.append(f"| {words} | {cell} | {value['rounds']} | {unit} |")
    return "\n".join(rows)


def _memory(record: dict[str, Any]) -> str:
    cells = [f"{name} {value:.0f} MB" for name, value in record["peak_memory_mb"].items()]
    return (
        f"Peak memory of a step beyond the model, batch {record['batch']}: {', '.join(cells)}. The "
        f"arithmetic allows a ratio of {record['arithmetic_limit']:.2f} over concatenation."
    )


def _commands(record: dict[str, Any]) -> str:
    cells = [f"{name} {value['median']:.2f} s" for name, value in record["seconds"].items()]
    return f"Whole processes, with {record['artefacts']} artefacts: {', '.join(cells)}."


def _scores(record: dict[str, Any]) -> str:
    return (
        f"HGPrompt from bf16 evidence on {record['target']} ({record['images']} images, "
        f"{len(record['sources'])} sources): {record['scores_outside']} scores and "
        f"{record['weights_outside']} weights outside the bootstrap interval of fp32."
    )


def _profile(record: dict[str, Any]) -> str:
    stages = {key: value for key, value in record.items() if isinstance(value, dict)}
    stages = {key: value for key, value in stages.items() if "share_of_time" in value}
    groups = list(next(iter(stages.values()))["share_of_time"])
    rows = [
        "Profile: operations per second as a share of the measured peak of a square product in the "
        "same precision, and where the time goes, in %:",
        "",
        "| stage | of the peak | " + " | ".join(groups) + " |",
        "|---" * (len(groups) + 2) + "|",
    ]
    for name, value in stages.items():
        cells = [f"{100 * value['share_of_time'][group]:.0f}" for group in groups]
        rows.append(f"| {name} | {100 * value['share_of_peak']:.0f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def solver_table(folder: Path) -> str:
    """Return the times of the solver, the evidence pass, and Algorithm 1 as written."""
    rows = [
        "## Solver and evidence",
        "",
        "Two cores; one command each, `python -m benchmarks speed.solver`.",
        "",
    ]
    rows += ["| what | value |", "|---|---|"]
    records = Records(folder)
    for part in ("solver", "evidence", "algorithm"):
        if part in records:
            values = records.read(part)
            values.pop("machine")
            rows += [
                f"| {part}: {key.replace('_', ' ')} | {value:.4g} |"
                for key, value in values.items()
            ]
    return "\n".join(rows) + "\n" if len(rows) > 6 else ""
