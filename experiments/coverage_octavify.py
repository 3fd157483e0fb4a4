"""octavify every classification network of torchvision and one of each convolutional family of timm.

    python experiments/coverage_octavify.py --json results/octavify_coverage.json

What is in the file already is not done again. Each network, with random weights, is octavified at alpha 0.25; then its
output at alpha 0 is compared with its own, and it runs forward, backward, under torch.compile (fullgraph) and
through torch.export.
"""

import argparse
import json
import time
import warnings
from collections import Counter
from pathlib import Path

import timm
import torch
import torchvision
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

import octaveconv as oc
from octaveconv import env

PIXELS, ALPHA = 128, 0.25
CHECKS = ("forward", "backward", "compile", "export")


def networks():
    """Names to functions that build: torchvision's, then the first of each of timm's modules but ours."""
    found = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        found[f"torchvision {name}"] = lambda name=name: torchvision.models.get_model(name, weights=None)
    for module in timm.list_modules():
        names = [name for name in timm.list_models(module=module) if not name.startswith("oct_")]
        if names:
            found[f"timm {names[0]}"] = lambda name=names[0]: timm.create_model(name)
    return found


def size(build):
    """Parameters; a network that cannot be built comes last."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except Exception:
        return float("inf")


def image(model):
    """One of 128 pixels, or of the network's own size if it insists on that."""
    cfg = getattr(model, "default_cfg", {})
    own = cfg.get("input_size", (3, getattr(model, "image_size", 224)))[-1]
    first_choice = own if cfg.get("fixed_input_size") or hasattr(model, "image_size") else PIXELS
    x = torch.randn(1, 3, first_choice, first_choice)
    with torch.no_grad():
        return x if attempt(lambda: model(x)) == "ok" else torch.randn(1, 3, own, own)


def attempt(action):
    """``"ok"``, or what went wrong, in one line."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]
    return "ok"


def first(output):
    """One tensor of whatever a network returns."""
    while not isinstance(output, torch.Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def outcome(build):
    """What became of one network."""
    torch.manual_seed(0)
    model = build().eval()
    x = image(model)
    try:
        octave, plan = oc.octavify(model, ALPHA, x)
    except Exception as error:
        text = str(error).partition("\n")[0]
        kind = "refused" if conv_share(model, x) >= 0.5 else "no CNN"
        return {"outcome": kind, "why": f"{type(error).__name__}: {text}"[:300]}
    convs = [layer for layer in plan.layers if layer.convolves]
    linear = sum(layer.macs_before for layer in convs if layer.kind == "Linear")
    share = conv_share(model, x) + linear / max(plan.macs_before, 1)
    if share < 0.5:
        return {"outcome": "no CNN", "conv_share": share}
    count = sum(layer.octave for layer in convs)
    row = {
        "outcome": "octave" if count else "dense",
        "octave": count,
        "convs": len(convs),
        "macs": plan.macs_after / plan.macs_before,
        "conv_share": share,
        "borders": len(plan.borders),
        "notes": plan.notes,
        "why": Counter(layer.why for layer in convs if not layer.octave).most_common(3),
    }
    with torch.no_grad():
        same, own = first(oc.octavify(model, 0, x)[0](x)), first(model(x))
    row["difference_at_0"] = (same - own).abs().max().item()
    if count:
        row |= checks(octave, x)
    return row


def conv_share(model, x):
    """Of all its multiply-adds those in convolutions, those in modules that octavify does not enter, too."""
    macs = []

    def count(conv, inputs, y):
        macs.append(y.numel() * conv.weight[0].numel())

    hooks = [part.register_forward_hook(count) for part in model.modules() if isinstance(part, _ConvNd)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    for hook in hooks:
        hook.remove()
    return 2 * sum(macs) / max(counter.get_total_flops(), 1)


def checks(octave, x):
    """Whether an octave network does what networks have to do."""
    with torch.no_grad():
        row = {"forward": attempt(lambda: octave(x))}
        compiled = torch.compile(octave, backend="eager", fullgraph=True)
        row["compile"] = attempt(lambda: torch.testing.assert_close(first(compiled(x)), first(octave(x))))
        row["export"] = attempt(lambda: torch.export.export(octave, (x,)))
    torch.compiler.reset()
    octave.train()
    row["backward"] = attempt(lambda: first(octave(torch.cat([x, x]))).sum().backward())
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", default="", help="networks whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    result = {"env": env.facts(), "threads": 1, "size": PIXELS, "alpha": ALPHA, "networks": {}}
    if args.json.exists():
        result["networks"] = json.loads(args.json.read_text())["networks"]
    missing = {
        name: build for name, build in networks().items() if name not in result["networks"] and args.only in name
    }
    sizes = {name: size(build) for name, build in missing.items()}
    for name, build in sorted(missing.items(), key=lambda item: sizes[item[0]]):  # small ones first
        began = time.time()
        try:
            row = outcome(build)
        except Exception as error:  # a network that cannot be built at this size, or alone
            row = {"outcome": "not built", "why": f"{type(error).__name__}: {error}"[:200]}
        result["networks"][name] = row
        print(f"{name}: {row} ({time.time() - began:.0f} s)", flush=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
