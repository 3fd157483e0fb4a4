"""What a file of ``octaveconv bench`` says: the candidates, the ratios, the verdict in words, and the plot."""

from __future__ import annotations

from typing import Any

from .. import env
from .._text import counted
from .measure import protocol


def candidate_table(batch: dict[str, Any]) -> list[list[str]]:
    """Rows of text: every candidate of one batch size with its quick time, for each network the fastest first.

    S is the candidate's own: the quick time of the fastest dense candidate over its quick time.
    """
    rows = [["candidate", "ms", "quartiles", "S", "MiB", "difference", "ready in s"]]
    dense = min(one["quick"]["median"] for one in batch["candidates"] if not one["alpha"])
    order = [net["name"] for net in batch["networks"]]
    for one in sorted(batch["candidates"], key=lambda one: (order.index(one["network"]), one["quick"]["median"])):
        memory = "-" if one["peak_bytes"] is None else f"{one['peak_bytes'] / 2**20:.1f}"
        name = ", ".join(filter(None, (one["network"], _way(one))))
        rows.append(
            [
                name,
                _ms(one["quick"]["median"]),
                _quartiles(one["quick"]),
                f"{dense / one['quick']['median']:.3f}",
                memory,
                f"{one['difference']:.0e}",
                f"{one['prepare_s']:.1f}",
            ]
        )
    return rows


def not_run(batch: dict[str, Any]) -> list[str]:
    """A line for each runtime that could not run, with the reason and the networks that it holds for."""
    networks: dict[tuple[str, str], list[str]] = {}
    for row in batch["not_run"]:
        names = networks.setdefault((row["runtime"], row["why"]), [])
        if row["network"] not in names:
            names.append(row["network"])
    lines = []
    for (runtime, why), names in networks.items():
        which = "" if len(names) == len(batch["networks"]) else f" of {', '.join(names)}"
        lines.append(f"not run: {runtime}{which}: {why}")
    return lines


def table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of text: for each batch size and alpha T, S, S/T and the two times behind them."""
    rows = [["batch", "alpha", "T", "S", "S/T", "octave ms", "quartiles", "in", "dense ms", "quartiles", "in"]]
    for batch in result["batches"]:
        dense = batch["best_dense"]
        name = "" if dense["network"] == "dense twin" else f"{dense['network']}, "
        for row in batch["alphas"]:
            rows.append(
                [
                    str(batch["batch_size"]),
                    f"{row['alpha']:g}",
                    *(f"{row[key]:.3f}" for key in ("t", "s", "s_over_t")),
                    _ms(row["median"]),
                    _quartiles(row),
                    _way(row),
                    _ms(dense["median"]),
                    _quartiles(dense),
                    name + _way(dense),
                ]
            )
    return rows


def roofline_table(result: dict[str, Any]) -> list[list[str]]:
    """Rows of text: the share of the GPU's rates that the fastest networks reach, and their memory; none for a CPU."""
    rows = []
    for batch in result["batches"]:
        for row in batch.get("roofline", ()):
            dense = batch["roofline"][0]["peak_bytes"]
            memory = ["-", "-"]
            if row["peak_bytes"] is not None:
                memory = [f"{row['peak_bytes'] / 2**20:.0f}", f"{row['peak_bytes'] / dense:.3f}" if dense else "-"]
            rows.append(
                [
                    str(batch["batch_size"]),
                    row["network"],
                    _ms(row["median"]),
                    f"{row['flops'] / 1e9:.1f}",
                    f"{row['matrix_share']:.1%}",
                    f"{row['bytes'] / 1e6:.1f}",
                    f"{row['copy_share']:.1%}",
                    *memory,
                ]
            )
    heading = ["batch", "network", "ms", "GFLOP", "of matrix rate", "MB", "of copy rate", "MiB", "of dense"]
    return [heading, *rows] if rows else []


def verdicts(result: dict[str, Any]) -> list[str]:
    """A sentence for each batch size and alpha: how much faster octave is, or that it is slower."""
    lines = []
    for batch in result["batches"]:
        rival = f"the fastest dense network ({batch['best_dense']['network']}, {_way(batch['best_dense'])})"
        for row in batch["alphas"]:
            start = f"batch {batch['batch_size']}, alpha {row['alpha']:g}: octave is"
            saved = f"theory allows {row['t']:.2f}"
            if row["s"] > 1:
                lines.append(f"{start} {row['s']:.3f} times as fast as {rival}; {saved}")
            elif row["s"] < 1:
                lines.append(f"{start} slower: it takes {1 / row['s']:.3f} times as long as {rival}; {saved}")
            else:
                lines.append(f"{start} no faster than {rival}; {saved}")
    return lines


def conditions(result: dict[str, Any]) -> str:
    """What the figures were measured with, in one line."""
    return "; ".join(condition_parts(result))


def condition_parts(result: dict[str, Any]) -> list[str]:
    """The same in parts, the network's name first, so that a table of several results can say once what they share."""
    facts = result["env"]
    work = {"infer": "inference", "train": "training step (forward, loss, backward, SGD)"}[result["mode"]]
    machine = facts["gpu"] if result["device"] == "cuda" else facts["cpu"]
    versions = ", ".join(
        f"{name} {facts[key]}"
        for key, name in (("torch", "PyTorch"), ("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime"))
        if facts[key] != "not installed"
    )
    commit = facts["commit"].removesuffix(env.DIRTY)
    dirty = " with uncommitted changes" if facts["commit"] != commit else ""
    parts = [
        result["model"],
        f"{work}, {result['dtype']}, {result['size']}x{result['size']} pixels",
        f"{_threads(result)}, {machine}",
        versions,
        f"octaveconv {facts['octaveconv']} at commit {commit}{dirty}",
        f"medians and quartiles of {protocol(result['runs'], result['pause_s'], result.get('warm_s'))}, in one process",
    ]
    if result["device"] == "cuda":
        parts.append("L2 cache warm from the untimed calls")
    if rate := result.get("rates"):
        parts.append(
            f"measured copy {rate['copy_bytes_per_s'] / 1e9:.0f} GB/s (read and written), matrix product "
            f"{rate['matrix_flops_per_s'] / 1e12:.1f} TFLOP/s"
        )
    return [*parts, f"weights {result['weights']}"]


def points(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratios of all batch sizes, as plotted."""
    return [{"batch_size": batch["batch_size"], **row} for batch in result["batches"] for row in batch["alphas"]]


def draw(result: dict[str, Any], axis: Any) -> None:
    """Draw S over T, a curve for each batch size, with the line S = T."""
    highest = max(point["t"] for point in points(result))
    axis.plot([1, highest], [1, highest], color="0.5", linestyle="--", label="S = T: all work saved is time saved")
    axis.axhline(1, color="0.5", linewidth=0.8, label="S = 1: as fast as dense")
    for batch in result["batches"]:
        rows = sorted(batch["alphas"], key=lambda row: row["t"])
        axis.plot(
            [row["t"] for row in rows], [row["s"] for row in rows], marker="o", label=f"batch {batch['batch_size']}"
        )
        for row in rows:
            axis.annotate(f"{row['alpha']:g}", (row["t"], row["s"]), (4, -10), textcoords="offset points")
    machine = _threads(result) if result["device"] == "cpu" else result["env"]["gpu"]
    axis.set(
        xlabel="T = multiply-adds, dense / octave",
        ylabel="S = time, fastest dense / octave",
        title=f"{result['model']}, {result['mode']}, {result['dtype']}, {machine}",
    )
    axis.legend(fontsize="small")


def _threads(result: dict[str, Any]) -> str:
    return counted(result["threads"], "thread")


def _way(figures: dict[str, Any]) -> str:
    """How it ran: ``compiled channels_last``, ``deployed native``."""
    return " ".join(filter(None, (figures["runtime"], figures["layout"], figures["engine"])))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"


def _quartiles(timing: dict[str, Any]) -> str:
    return f"{_ms(timing['lower'])}-{_ms(timing['upper'])}"
