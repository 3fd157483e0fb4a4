"""The tables about octavify."""

import json
import re
from statistics import mean, stdev

from tables import ROOT, markdown

from octaveconv._text import counted


def real_table():
    """What octavify keeps of networks with real weights."""
    result = json.loads((ROOT / "results" / "octavify_real.json").read_text())
    found = {}
    for row in result["rows"]:
        found.setdefault((row["network"], row["measure"], row["distill"], -row["budget"]), []).append(row)
    rows = [["network", "right", "distilled", "multiply-adds", "%", "below dense", "agreement", "seconds", "samples"]]
    for (network, measure, distill, _), each in sorted(found.items()):
        lost = [row["dense"] - row["score"] for row in each]
        spread = f" ± {stdev(lost):.1f}" if len(each) > 1 else ""
        means = {key: mean(row[key] for row in each) for key in ("macs", "score", "agreement", "seconds")}
        rows.append(
            [
                network,
                measure,
                counted(distill, "epoch") if distill else "",
                f"{means['macs']:.0%}",
                f"{means['score']:.1f}",
                f"{mean(lost):.1f}{spread}",
                f"{means['agreement']:.1f}",
                f"{means['seconds']:.0f}",
                str(len(each)),
            ]
        )
    note = (
        f"What is right, and the agreement with the dense network's decisions, in %, on the inputs that are not in the "
        f"sample; means, and standard deviations, over random samples of {result['images']}, without labels, of 500 "
        f"photos (1,200 tones for CREPE). Conditions: {counted(result['threads'], 'thread')} on a machine that did "
        f"other work, too, so seconds are an upper bound; PyTorch {result['env']['torch']}, {result['env']['cpu']}."
    )
    return f"{markdown(rows)}\n\n{note}"


def transfer_table():
    """What fine-tuning on few images of other classes makes of a dense and of an octave network."""
    result = json.loads((ROOT / "results" / "transfer.json").read_text())
    names = dict.fromkeys(row["network"] for row in result["rows"])
    rows = [["network", "multiply-adds", "top-1", "below dense"]]
    dense = {row["seed"]: row["top1"] for row in result["rows"] if row["network"] == "dense"}
    for name in names:
        each = [row for row in result["rows"] if row["network"] == name]
        found, lost = [row["top1"] for row in each], [dense[row["seed"]] - row["top1"] for row in each]
        below = "" if name == "dense" else f"{mean(lost):.1f} ± {stdev(lost):.1f}"
        rows.append(
            [name, f"{mean(row['macs'] for row in each):.0%}", f"{mean(found):.1f} ± {stdev(found):.1f}", below]
        )
    note = (
        f"Top-1 in %, mean and standard deviation of {len(dense)} seeds, which draw {result['images']} training images "
        f"of each of CIFAR-10's classes; {10 * result['test']:,} test images at {result['size']} pixels. Conditions: "
        f"EfficientNet-Lite0 with ImageNet's weights, {result['epochs']} epochs of AdamW; octavified with 200 training "
        f"images without labels; {counted(result['threads'], 'thread')}, PyTorch {result['env']['torch']}, "
        f"{result['env']['cpu']}."
    )
    return f"{markdown(rows)}\n\n{note}"


REASONS = {  # what octavify says today, for the words of the version that measured the networks
    r"its map of (\S+) is below (\d+) pixels": r"\1 map, smaller than min_size=\2",
    "it is no feature map": "1x1 map, as in an SE gate",
    "the stem stays dense": "stem, octave only with stem=True",
    "takes plain tensors only": "has no octave form",
    "nothing that makes or reads it takes an octave": "not between two octave layers",
}


def reason(text):
    for before, now in REASONS.items():
        text = re.sub(before, now, text)
    return text


def coverage_table():
    """What octavify makes of the networks of torchvision and timm."""
    result = json.loads((ROOT / "results" / "octavify_coverage.json").read_text())
    networks = {name: row for name, row in sorted(result["networks"].items()) if row["outcome"] != "no CNN"}
    rows = [["network", "octave convolutions", "MACs", "difference at alpha 0", "runs", "what stays dense, mostly"]]
    for name, row in networks.items():
        if "convs" not in row:
            rows.append([name, row["outcome"], "", "", "", row["why"].replace("|", "/")])
            continue
        failed = [check for check in ("forward", "backward", "compile", "export") if row.get(check, "ok") != "ok"]
        rows.append(
            [
                name,
                f"{row['octave']} of {row['convs']}",
                f"{row['macs']:.0%}",
                f"{row['difference_at_0']:g}",
                f"not {', '.join(failed)}" if failed else "all" if row["octave"] else "",
                "; ".join(f"{count}: {reason(why)}" for why, count in row["why"][:1]),
            ]
        )
    made = sum(row["outcome"] == "octave" for row in networks.values())
    exact = sum(row.get("difference_at_0") == 0 for row in networks.values())
    note = (
        f"{made} of {len(networks)} convolutional networks become octave networks; {exact} give exactly their own "
        f"output at alpha 0. {len(result['networks']) - len(networks)} others spend less than half of their "
        f"multiply-adds in convolutions. Conditions: alpha {result['alpha']:g}, images of {result['size']} pixels (or "
        f"the size that a network insists on), random weights, {result['threads']} thread, PyTorch "
        f"{result['env']['torch']}, timm {result['env']['timm']}, {result['env']['cpu']}; compile is "
        f'`torch.compile(backend="eager", fullgraph=True)`.'
    )
    return f"{markdown(rows)}\n\n{note}"


def strangers_table():
    """What octavify makes of networks of other projects."""
    result = json.loads((ROOT / "results" / "strangers.json").read_text())
    rows = [
        ["network", "octave convolutions", "MACs", "borders", "parts", "difference at alpha 0", "runs", "kept, mostly"]
    ]
    for name, row in sorted(result["networks"].items()):
        if "convs" not in row:
            rows.append([name, row["outcome"], "", "", "", "", "", row["why"].replace("|", "/")])
            continue
        failed = [check for check in ("forward", "backward") if row[check] != "ok"]
        rows.append(
            [
                name,
                f"{row['octave']} of {row['convs']}",
                f"{row['macs']:.0%}",
                str(row["borders"]),
                "whole" if row["whole"] else str(row["parts"]),
                f"{row['difference_at_0']:g}",
                f"not {', '.join(failed)}" if failed else "all",
                "; ".join(f"{count}: {why}" for why, count in row["why"][:1]).replace("|", "/"),
            ]
        )
    networks = result["networks"].values()
    made = sum(row["outcome"] == "octave" for row in networks)
    exact = sum(row.get("difference_at_0") == 0 for row in networks)
    versions = ", ".join(f"{package} {version}" for package, version in sorted(result["versions"].items()))
    note = (
        f"{made} of {len(networks)} networks become octave networks; {exact} give exactly their own output at alpha 0. "
        f"Conditions: one call of octavify at alpha {result['alpha']:g}, small configurations, random weights, "
        f"{counted(result['threads'], 'thread')}; PyTorch {result['env']['torch']}, {versions}; "
        f"{result['env']['cpu']}. "
        f'"Whole" was traced as a whole; parts are modules that were converted each by itself.'
    )
    return f"{markdown(rows)}\n\n{note}"
