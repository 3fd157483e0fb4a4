"""The tables of the documents, made from the registry and from results/. `write_docs.py` puts them there."""

import ast
import inspect
import json
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from octavify_tables import coverage_table, real_table, strangers_table, transfer_table
from tables import ROOT, markdown

import octaveconv as oc
from octaveconv import env, evaluate, models, quickstart
from octaveconv._text import counted
from octaveconv.bench import published, report, speed_report
from octaveconv.deploy import handlers, operations
from octaveconv.verbs import models as verb
from octaveconv.verbs import train as train_verb

ALPHAS = (0, 0.125, 0.25, 0.5, 0.75)


def networks_table():
    rows = [["name", "parameters", *(f"GMACs at {alpha:g}" for alpha in ALPHAS)]]
    for name, cost in models.COSTS.items():
        cells = [f"{cost['macs'][f'{a:g}'] / 1e9:.3f}" if f"{a:g}" in cost["macs"] else "-" for a in ALPHAS]
        rows.append([f"`{name}`", f"{cost['params'] / 1e6:.1f} M", *cells])
    return markdown(rows)


def published_table():
    facts = [verb.describe(name) for name in sorted(models.PUBLISHED)]
    heading, *rows = verb.table(facts)
    return markdown([heading, *([f"`{row[0]}`", *row[1:-1], f"`{row[-1]}`"] for row in rows)])


def quickstart_table():
    result = json.loads((ROOT / "results" / "quickstart.json").read_text())
    seeds = json.loads((ROOT / "results" / "quickstart_seeds.json").read_text())["accuracy"]
    spread = "; ".join(
        f"{name} {min(values):.1%} to {max(values):.1%}, mean {sum(values) / len(values):.1%}"
        for name, values in seeds.items()
    )
    note = (
        f"{quickstart.verdict(result)} Over {len(seeds['dense'])} seeds: {spread}.\n\n"
        f"Conditions: {quickstart.conditions(result)}."
    )
    return f"{markdown(quickstart.table(result))}\n\n{note}"


def parity_table():
    result = json.loads((ROOT / "results" / "parity.json").read_text())
    rows = [["golden or file", "network", "difference / std"]]
    rows += [
        [f"`{name}`", f"`{row['network']}`", f"{row['difference']:.1e}"] for name, row in result["goldens"].items()
    ]
    conditions = (
        f"Conditions: PyTorch {result['env']['torch']}, float32, {result['env']['cpu']}, {result['threads']} thread."
    )
    return f"{markdown(rows)}\n\n{conditions}"


def ecosystem_table():
    result = json.loads((ROOT / "results" / "ecosystem.json").read_text())
    rows = [["tool", "version", "tried", "outcome", ""]]
    for row in result["outcomes"]:
        note = row["note"].replace("|", "/").replace("<", "&lt;")
        rows.append([row["tool"], row["version"], row["tried"].replace("|", "/"), row["outcome"], note])
    count = Counter(row["outcome"] for row in result["outcomes"])
    left_out = f" Not installed: {', '.join(result['not_installed'])}." if result["not_installed"] else ""
    conditions = ", ".join(f"{name} {result['env'][name]}" for name in ("torch", "timm", "python", "commit"))
    return f"{markdown(rows)}\n\n{count['works']} of {len(rows) - 1} work.{left_out} Conditions: {conditions}."


def fuzz_table():
    result = json.loads((ROOT / "results" / "fuzz.json").read_text())
    rows = [["reader", "files", "read", "refused", "longest", "result"]]
    rows += [
        [f"`{name}`", *(f"{run[key]:,}" for key in ("cases", "read", "refused")),
         f"{1000 * run['longest_s']:.0f} ms", run["result"]]
        for name, run in result["readers"].items()
    ]  # fmt: skip
    commits = ", ".join(dict.fromkeys(run["commit"] for run in result["readers"].values()))
    return (
        f"{markdown(rows)}\n\nConditions: `python experiments/fuzz.py`, commit {commits}, PyTorch "
        f"{result['env']['torch']}, 1 thread, {result['env']['cpu']}; a file fails if reading it ends the process, "
        f"raises another error than the reader promises, or takes more than {result['seconds_limit']:g} s of the "
        f"processor or than its size and 64 MiB of address space (`params`: 82, for what xz -9 compresses needs 65)."
    )


def scoring_table():
    result = json.loads((ROOT / "results" / "scoring.json").read_text())
    rows = [["processes", "images", "top-1", "top-5", "images/s"]]
    rows += [
        [
            str(run["processes"]),
            *(f"{run[key]:,}" for key in ("images", "top1_count", "top5_count")),
            f"{run['images_per_s']:.0f}",
        ]
        for run in result["runs"]
    ]
    conditions = evaluate.conditions(result["runs"][0] | result["env"])
    return f"{result['what']}\n\n{markdown(rows)}\n\nConditions: {conditions}."


def fields_table():
    return markdown([["field", "default", "meaning"], *([f"`{row[0]}`", *row[1:]] for row in train_verb.describe())])


def soak_table():
    """The runs of all machines that the soak ran on, a file each."""
    results = [json.loads(path.read_text()) for path in sorted((ROOT / "results").glob("soak*.json"))]
    runs = [run for result in results for run in result["runs"]]
    stops = Counter(stop.partition(" after")[0] for run in runs for stop in run["stops"])
    told = ", ".join(f"{count} by {name}" for name, count in sorted(stops.items()))
    first = results[0]
    machines = " and ".join(f"{len(result['runs'])} on {result['env']['cpu']}" for result in results)
    return (
        f"`python experiments/soak_train.py`: {len(runs)} runs of {first['processes']} processes, each of about "
        f"{first['seconds_of_work']:g} seconds of work, were stopped {stops.total()} times at random moments ({told}) "
        f"and resumed; {sum(run['result'] == 'identical' for run in runs)} ended with the very weights and results.csv "
        f"of the run that nothing disturbed, every epoch once. Conditions: commit {first['commit']}, PyTorch "
        f"{first['env']['torch']}, {first['threads']} thread each; {machines}; "
        f"{sum(run['seconds'] for run in runs) / 60:.0f} minutes in all."
    )


def flips_table():
    result = json.loads((ROOT / "results" / "bit_flips.json").read_text())
    rows = [["file", "bytes", "flips", "noticed", "harmless", "loaded with other content"]]
    for name, kind in result["kinds"].items():
        noticed, harmless = (kind.get(fate, 0) for fate in ("noticed", "harmless"))
        rows.append([f"`{name}`", f"{kind['bytes']:,}", kind["tries"], noticed, harmless, kind.get("unnoticed", 0)])
    size = result["bytes_timed"] // 10**6
    times = (
        f"{each['check_ms']:.0f} of {each['load_ms']:.0f} ms for a {name}" for name, each in result["times"].items()
    )
    return (
        f"{markdown([[str(cell) for cell in row] for row in rows])}\n\nOne random bit flipped in a file, then loaded "
        f"(`python experiments/bit_flips.py`). Checking takes {' and '.join(times)} of {size} MB in the "
        f"disk's cache, the least of 9 times. Conditions: seed {result['seed']}, PyTorch {result['env']['torch']}, "
        f"{result['threads']} thread, {result['env']['cpu']}."
    )


def overhead_table():
    result = json.loads((ROOT / "results" / "overhead.json").read_text())
    ours, bare = (result["seconds"][name] for name in ("ours", "bare"))
    return (
        f"`python experiments/overhead_train.py`: {result['overhead']:+.2%}, medians of {ours['runs']} interleaved "
        f"rounds of {result['steps']} steps ({ours['median']:.3f} s against {bare['median']:.3f} s, quartiles "
        f"{ours['lower']:.3f} to {ours['upper']:.3f} and {bare['lower']:.3f} to {bare['upper']:.3f}). Conditions: "
        f"{result['network']}, batch {result['batch']}, {result['dtype']}, {result['layout']}, loading included, "
        f"{result['threads']} thread, PyTorch {result['env']['torch']}, {result['env']['cpu']}."
    )


def ablation_table():
    """What was measured, beside what the original published of the same network on ImageNet."""
    result = json.loads((ROOT / "results" / "ablation.json").read_text())
    original = {"0": models.DENSE["oct_resnetv2_26"][0]} | {
        f"{record.alpha:g}": record.top1 for record in models.PUBLISHED.values() if record.network == "oct_resnetv2_26"
    }
    heading, *rows = report.table(result)
    table = [[*heading, "original, ImageNet"], *([*row, f"{original[row[0]]}"] for row in rows)]
    speed, quartiles = result["images_per_s"], result["images_per_s_quartiles"]
    spread = max(max(high / speed[key] - 1, 1 - low / speed[key]) for key, (low, high) in quartiles.items())
    conditions = (
        f"Conditions: {result['what']}. Top-1 after the last epoch: mean and standard deviation of the seeds. Images/s "
        f"of a training step without loading: medians of {result['rounds']} interleaved rounds, batch "
        f"{result['batch']}, quartiles within {spread:.0%}. {result['dtype']}, {result['layout']}, "
        f"{result['threads']} thread, PyTorch {result['env']['torch']}, {result['env']['cpu']}."
    )
    return f"{markdown(table)}\n\n{conditions}"


def speed_table(kind=""):
    """What `octaveconv bench` measured of ResNet-50 on the CPU."""
    result = json.loads((ROOT / "results" / f"speed_oct_resnet50_cpu{kind}.json").read_text())
    return f"{markdown(report.table(result))}\n\nConditions: {speed_report.conditions(result)}."


def api_table():
    """Every public name with the first sentence of its text."""
    rows = [["name", "what it is"]]
    for name in sorted(oc.__all__, key=lambda name: (not isinstance(getattr(oc, name), type), name.lower())):
        text = " ".join(inspect.getdoc(getattr(oc, name)).partition("\n\n")[0].split())
        rows.append([f"`oc.{name}`", text.partition(" Args, ")[0]])
    return markdown(rows).replace("---: |", "--- |", 1)


def first_table():
    """README's: what the original published of ResNet-50, our multiply-adds, and milliseconds."""
    network, alphas = "oct_resnetv2_50", (0, 0.25, 0.5)
    result = json.loads((ROOT / "results" / f"speed_{network}_cpu.json").read_text())
    points = {point.alpha: point for point in published.points() if point.network == network}
    rows = [["ResNet-50", *("dense" if not alpha else f"alpha {alpha:g}" for alpha in alphas)]]
    rows.append(["top-1 on ImageNet, as the original published", *(f"{points[alpha].top1:.1f} %" for alpha in alphas)])
    rows.append(["multiply-adds", *(f"{points[alpha].macs / 1e9:.2f} G" for alpha in alphas)])
    for batch in result["batches"]:
        times = {0: batch["best_dense"], **{row["alpha"]: row for row in batch["alphas"]}}
        cells = [f"{times[alpha]['median'] * 1e3:.1f} ms" for alpha in alphas]
        rows.append([f"time for {counted(batch['batch_size'], 'image')}", *cells])
    rivals = sorted({batch["best_dense"]["runtime"] for batch in result["batches"]})
    dirty = result["env"]["commit"].endswith(env.DIRTY)
    again = " The code was not fully committed when these times were taken; they will be measured again." * dirty
    tried = f"the fastest of {len(result['runtimes'])} runtimes, here {' or '.join(rivals)}"
    return (
        f"{markdown(rows)}\n\nOctave is deployed by this library; dense is {tried}. Conditions of the times: "
        f"{speed_report.conditions(result)}.{again}"
    )


def triton_table():
    result = json.loads((ROOT / "results" / "triton_resources.json").read_text())
    rows = [["layer", "dtype", "tile", "threads", "registers", "stack, bytes", "shared memory, KiB"]]
    rows += [
        [
            *(str(row[key]) for key in ("layer", "dtype", "tile", "threads", "registers", "stack_bytes")),
            f"{row['shared_bytes'] / 1024:.0f}",
        ]
        for row in result["rows"]
    ]
    conditions = (
        f"Conditions: compiled for {result['target']} and not run; alpha {result['alpha']:g}, {result['layout']}, with "
        f"TF32, Triton {result['env']['triton']}, PyTorch {result['env']['torch']}."
    )
    return f"{markdown(rows)}\n\n{conditions}"


OTHER_SPEEDS = [  # results/speed_NAME.json
    "oct_resnet50_cpu_1_thread", "oct_resnet50_cpu_avx2", "oct_resnetv2_50_cpu",
    "oct_resnet101_cpu", "oct_resnextv2_50_32x4d_cpu", "oct_mobilenetv1_100_cpu", "oct_densenet121_cpu",
]  # fmt: skip


def speeds_table():
    """The same for other networks, threads and instruction sets, and our dense twin's time over OpenVINO's."""
    table = [
        ["network", "threads", "CPU", "batch", "alpha", "T", "S", "S/T", "octave ms", "in", "dense ms", "in", "ours"]
    ]
    results = [json.loads((ROOT / "results" / f"speed_{name}.json").read_text()) for name in OTHER_SPEEDS]
    for result in results:
        first = [result["model"], str(result["threads"]), result["env"]["cpu"].split(", ")[-1]]
        for batch in result["batches"]:
            dense = batch["best_dense"]
            twin = {
                one["runtime"]: (one["final"] or one["quick"])["median"]
                for one in batch["candidates"]
                if not one["alpha"]
            }
            ours = twin["deployed"] / twin["openvino"]
            for row in batch["alphas"]:
                ratios = [f"{row[key]:.3f}" for key in ("t", "s", "s_over_t")]
                times = [text for one in (row, dense) for text in (f"{one['median'] * 1e3:.2f}", one["runtime"])]
                alpha = f"{row['alpha']:g}"
                table.append([*first, str(batch["batch_size"]), alpha, *ratios, *times, f"{ours:.2f}"])
    return f"{markdown(table)}\n\n{conditions_of(results)}"


def conditions_of(results):
    """What all results share, and a line for each with the rest."""
    parts = [speed_report.condition_parts(result) for result in results]
    shared = [part for part in parts[0] if all(part in own for own in parts)]
    lines = ["; ".join(part for part in own if part not in shared) for own in parts]
    return "\n".join([f"Conditions of all: {'; '.join(shared)}. Of each:", "", *(f"- {line}" for line in lines)])


def deployed_table():
    """What runs the networks of `coverage_deploy.py`: by family, since their sizes differ in depth alone."""
    result = json.loads((ROOT / "results" / "deploy_coverage.json").read_text())
    families = defaultdict(list)
    for name, row in result["networks"].items():
        ours = name.startswith("oct_")
        families["oct_*" if ours else re.split(r"[\d_]", name.removeprefix("torchvision "))[0]].append(row)
    rows = [
        [
            "torchvision's, and ours",
            "networks",
            "native alone",
            "native and PyTorch",
            "native share",
            "Inductor",
            "wrong",
        ]
    ]
    for family, found in sorted(families.items()):
        native = [row for row in found if row["engine"] == "native"]
        alone = sum(row["stretches"] == 1 for row in native)
        share = min((row["native_share"] for row in native), default=0)
        wrong = sum("wrong" in row for row in found)
        counts = len(found), alone, len(native) - alone, f"{share:.0%}", len(found) - len(native), wrong
        rows.append([f"`{family}`", *map(str, counts)])
    return markdown(rows)


def deploy_fuzz_table():
    result = json.loads((ROOT / "results" / "deploy_fuzz.json").read_text())
    ran, stretches = result["ran"], result["stretches"]
    rows = [
        ["random networks", f"{result['networks']:,}"],
        ["compared answers", f"{result['comparisons']:,}"],
        ["wrong", str(len(result["wrong"]))],
        ["native", f"{ran.get('native', 0) / result['networks']:.1%}"],
        ["of these by the engine alone", f"{stretches.get('1', 0) / max(1, ran.get('native', 0)):.1%}"],
        ["left to Inductor", f"{ran.get('refused', 0) / result['networks']:.1%}"],
    ]
    return markdown(rows)


def operations_table():
    """What the engines take, and what they leave to PyTorch: the reasons that `deploy/handlers.py` gives."""
    tree = ast.parse(Path(handlers.__file__).read_text())
    methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    names = defaultdict(list)
    for operation, method in operations.METHODS.items():
        names[method].append(f"`{str(operation) if hasattr(operation, 'overloadpacket') else operation.__name__}`")
    names["activate"] = [f"`{operation}`" for operation in operations.ACTIVATIONS]
    same = ", ".join(f"`{operation}`" for operation in sorted(operations.SAME, key=str))
    rows = [f"| {', '.join(found)} | {'; '.join(_reasons(methods, name))} |" for name, found in names.items()]
    return "\n".join(["| operation | is left to PyTorch if |", "| --- | --- |", *rows, f"| {same} | |"])


def _reasons(methods, name):
    """Those of a method, and of what it calls besides other operations' methods."""
    found, left = {}, [name]
    for each in left:  # which grows
        for call in [node for node in ast.walk(methods[each]) if isinstance(node, ast.Call)]:
            called = call.func.attr if getattr(getattr(call.func, "value", None), "id", "") == "self" else ""
            if called == "unsupported" and call.args:
                parts = getattr(call.args[0], "values", [call.args[0]])
                found[
                    "".join(str(getattr(part, "value", "")) if type(part) is ast.Constant else "..." for part in parts)
                ] = 1
            elif called in methods and called not in left and called not in operations.METHODS.values():
                left.append(called)
    return found


TABLES = {
    "api": api_table,
    "first": first_table,
    "ecosystem": ecosystem_table,
    "deployed": deployed_table,
    "deploy_fuzz": deploy_fuzz_table,
    "operations": operations_table,
    "octavify": coverage_table,
    "octavify_real": real_table,
    "strangers": strangers_table,
    "transfer": transfer_table,
    "triton": triton_table,
    "speed": speed_table,
    "speeds": speeds_table,
    "speed_bf16": partial(speed_table, "_bf16"),
    "speed_train": partial(speed_table, "_train"),
    "ablation": ablation_table,
    "overhead": overhead_table,
    "fields": fields_table,
    "soak": soak_table,
    "flips": flips_table,
    "fuzz": fuzz_table,
    "scoring": scoring_table,
    "networks": networks_table,
    "published": published_table,
    "quickstart": quickstart_table,
    "parity": parity_table,
}
