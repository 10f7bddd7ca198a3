"""The README's tables of what a GPU did, out of the ``lab.json`` that ``benches.lab`` leaves, and of nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NOTHING = "No figures from a GPU yet; `python -m benches.lab` makes them."
Lab = Mapping[str, Any]


def kernel_table(files: Sequence[Path]) -> str:
    """Bandwidth of both kernels as a share of a measured copy, ratios to their peers, targets, and the host's cost."""
    return _tables(files, "kernels", _kernel_lines)


def step_table(files: Sequence[Path]) -> str:
    """Seconds and joules of a training step by how many stages were dropped."""
    return _tables(files, "steps", _step_lines)


def energy_table(files: Sequence[Path]) -> str:
    """Accuracy, seconds and joules of each method, with intervals over the seeds."""
    return _tables(files, "trainings", _energy_lines)


def line(texts: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def _tables(files: Sequence[Path], part: str, lines: Callable[[Lab], list[str]]) -> str:
    """A caption and a table per file that has the part from a GPU."""
    made: list[str] = []
    for path in files:
        lab = json.loads(path.read_text())
        found = lab["results"].get(part, {})
        if not (found.get("environment") or {}).get("gpu"):
            continue  # a rehearsal on a CPU
        rows = lines(lab)
        if rows:
            made += [caption(lab, part), "", *rows, ""]
    return "\n".join(made).strip() or NOTHING


def caption(lab: Lab, part: str) -> str:
    """What the figures below are true for."""
    where = lab["results"][part]["environment"]
    versions = ", ".join(
        f"{name} {where[name]}" for name in ("driver", "cuda", "torch", "triton", "python", "numpy") if where.get(name)
    )
    entry = lab["parts"][part]
    commit = f", commit {entry['git_commit'][:12]}" if entry.get("git_commit") else ""
    cut = "" if entry["state"] == "done" else f" (this part is {entry['state']})"
    return f"**{where['gpu']}**, {versions}, {entry['date']}{commit}{cut}."


def _kernel_lines(lab: Lab) -> list[str]:
    found = lab["results"]["kernels"]
    cases = {}
    for beside, said in (("", ""), ("compiled ", " (beside a compiled peer)")):
        for name, what in (("delta", "delta_norms, parameters of"), ("gather", "gather_rows,")):
            cases |= {f"{what} {case}{said}": row for case, row in found.get(beside + name, {}).items()}
    cases |= {"gather_rows, int8 -> bf16 out of pinned host memory": found["pinned"]} if "pinned" in found else {}
    lines = ["| what | GB/s | of a copy | times faster than | n |", "| --- | --- | --- | --- | --- |"]
    for case, row in cases.items():
        ratios = row.get("times_faster_than", {})
        if "compiled peer" in case and "compiled" not in ratios:
            continue  # left out, or it did not compile in time
        share = "-" if row["share_of_copy"] is None else f"{row['share_of_copy']:.0%}"
        peers = ", ".join(f"{peer} {ratio:.2f}{_launched(row, peer)}" for peer, ratio in ratios.items())
        speed = f"{row['bytes_per_second'] / 1e9:.0f}{_launched(row, 'kernel')}"
        lines.append(f"| {case} | {speed} | {share} | {peers} | {row['times']['kernel']['n']} |")
    if len(lines) == 2:
        return []
    copy = found["ceilings"]["copy_bytes_per_second"] / 1e9
    said = f"A device copy moves {copy:.0f} GB/s, read and written. Medians over n replays of a CUDA graph of "
    lines += ["", said + "20 calls or more; \\*: call by call, launches included."]
    lines += ["", *(f"* {_said(what, row)}" for what, row in found.get("targets", {}).items())]
    return [*lines, *(f"* {line}" for line in (*_right(lab), *_host(found.get("host", {}))))]


def _launched(row: Mapping[str, Any], name: str) -> str:
    return "\\*" if row["times"].get(name, {}).get("in") == "calls one by one" else ""


def _right(lab: Lab) -> list[str]:
    """Whether the kernels are right there: errors, replays, tests, memory accesses."""
    errors = lab["results"]["kernels"].get("delta_correct", {})
    lines = []
    if errors:
        differing = sum(row["differing"] + row.get("graph_differing", 0) for row in errors.values())
        n = sum(row["n"] * (2 if "graph_differing" in row else 1) for row in errors.values())
        worst = max(row["error_units"] for row in errors.values())
        lines.append(
            f"Largest error of delta_norms against float64: {worst:.1f} x 2^-24; of {n} repetitions {differing} differ "
            "in a bit."
        )
    ran = lab["results"].get("tests", {})
    if "tests" in ran:
        tests, memory = ran["tests"], ran.get("memcheck", {})
        lines.append(
            f"Property tests on it: {tests['passed']} passed, {tests['failed']} failed, {len(tests['not_run'])} not "
            f"run; {memory.get('cases', 0)} odd cases under {memory.get('watched_by', 'nothing')}: "
            f"{len(memory.get('wrong', ()))} wrong, {memory.get('memory_errors')} memory errors."
        )
    return lines


def _host(found: Mapping[str, Any]) -> list[str]:
    """What a call costs the host."""

    def us(row: Mapping[str, Any]) -> str:
        return f"{1e6 * row['median_seconds']:.1f}"

    deltas, gathers = (found.get(name, {}).items() for name in ("delta_norms", "gather_rows"))
    said = [f"delta_norms {case} {us(row['kernel'])} µs (foreach {us(row['foreach'])})" for case, row in deltas]
    said += [f"gather_rows, {case} {us(row)} µs" for case, row in gathers]
    return [f"A call costs the host: {'; '.join(said)}."] if said else []


def _said(what: str, row: Mapping[str, Any]) -> str:
    target, names = row["target"], {"delta": "delta_norms", "gather": "gather_rows"}
    return (
        f"Target of {names.get(what, what)} ({target['case']}): {target['share_of_copy']:.0%} of a copy and "
        f"{target['times_faster']} times {target['peer']}: {'met' if row['met'] else 'missed'}, "
        f"{row['share_of_copy']:.0%} and {row['times_faster']:.2f}."
    )


def _step_lines(lab: Lab) -> list[str]:
    found = lab["results"]["steps"]
    head = ("model", "stages dropped", "ms a step [p20, p80]", "of a whole step", "J a step (± bound)", "watts", "n")
    lines = [line(head), line(["---"] * len(head))]
    for row in found.get("steps", []):
        energy, ms = row.get("energy", {}), [1e3 * row[name] for name in ("median_seconds", "p20", "p80")]
        joules = f"unavailable: {energy.get('unavailable_reason') or 'not measured'}"
        if energy.get("joules_per_step") is not None:
            joules = f"{energy['joules_per_step']:.3f} (± {energy['bound_joules_per_step']:.3f})"
        watts = f"{energy['watts']:.0f}" if energy.get("watts") is not None else "-"
        share = f"{row['of_a_whole_step']:.2f}" if "of_a_whole_step" in row else "-"
        dropped = f"{row['dropped']} ({row['cut']} of {row['stages']})"
        took = f"{ms[0]:.2f} [{ms[1]:.2f}, {ms[2]:.2f}]"
        lines.append(line((row["model"], dropped, took, share, joules, watts, str(row["n"]))))
    if len(lines) == 2:
        return []
    sizes = found["sizes"]
    said = f"32 x 32 images, batch {sizes['batch']}, {sizes['precision']} autocast, channels last, eager; n spans of "
    return [*lines, "", f"{said}{sizes['least_steps']} steps, energy over one window of more than 5 s."]


def _energy_lines(lab: Lab) -> list[str]:
    from ldbench.errors import clean
    from ldbench.reporting.formatting import plus_minus, spanned

    found = lab["results"]["trainings"]
    head = (
        "model, scenario", "method", "n", "accuracy %", "to full", "training s", "time ÷ full", "energy J (± bound)",
        "energy ÷ full",
    )  # fmt: skip
    lines = [line(head), line(["---"] * len(head))]
    for plain in found.get("rows", []):
        row = {name: math.nan if value is None else value for name, value in plain.items()}
        energy = f"unavailable: {clean(row['energy_unavailable_reason'])}"
        if math.isfinite(row["energy_joules_mean"]):
            energy = f"{plus_minus(row, 'energy_joules', 0)} (± {row['energy_bound_joules_max']:.0f})"
            missing = int(row["runs"] - row["energy_joules_n"])
            energy += f", {missing} of {row['runs']} runs without" if missing else ""
        full = row["method"] == "full"
        texts = [f"{clean(row['model'])}, {row['scenario']}", clean(row["label"]), str(row["runs"])]
        texts += [plus_minus(row, "test_accuracy_percent")]
        texts += ["-" if full else spanned(row, "difference_to_full_points"), plus_minus(row, "train_seconds", 1)]
        texts += ["1" if full else spanned(row, "train_time_ratio", "", 2), energy]
        texts += ["1" if full else spanned(row, "energy_ratio", "", 3)]
        lines.append(line(texts))
    if len(lines) == 2:
        return []
    used = found["experiment"]
    width = "full width" if used.get("width", 1.0) == 1.0 else f"{used['width']} of the width"
    said = f"{used['train_size']} images of {', '.join(used['dataset'])}, {used['epochs']} epochs, "
    said += (
        f"{used['precision']}, {width}; intervals over the seeds (95 %); a run shorter than 5 s has no energy figure."
    )
    return [*lines, "", said]
