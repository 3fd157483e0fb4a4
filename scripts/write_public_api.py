"""Write tests/public_api.json: the public names with their signatures, and the command line.

``python scripts/write_public_api.py``, after a change of the public interface that is meant. tests/test_public.py fails
on every other change. The texts come from annotations and defaults as the source has them, so they are the same for
every version of Python and PyTorch.
"""

import argparse
import inspect
import json
from pathlib import Path

import octaveconv as oc
from octaveconv import cli
from octaveconv.cost import Cost, CostReport, LayerCost
from octaveconv.octavify.plan import LayerPlan, Plan

FILE = Path(__file__).parent.parent / "tests" / "public_api.json"
RESULTS = (Cost, CostReport, LayerCost, LayerPlan, Plan)  # what public functions return


def inventory():
    """Public name to signature, with the members of classes, and command line to options."""
    public = {name: getattr(oc, name) for name in oc.__all__ if name != "functional"}
    public |= {f"functional.{name}": getattr(oc.functional, name) for name in oc.functional.__all__}
    public |= {cls.__name__: cls for cls in RESULTS}
    found = {}
    for name, value in sorted(public.items()):
        found[name] = signature(value) if ours(value) else "class"
        if isinstance(value, type):
            found |= {f"{name}.{member}": text for member, text in members(value).items()}
    return {"python": found, "command line": command_line()}


def ours(value):
    """Whether a function, or the constructor of a class, is of this package."""
    if not isinstance(value, type):
        return True
    return any(made(cls) and {"__init__", "__new__"} & vars(cls).keys() for cls in value.__mro__)


def made(cls):
    """Whether a class is of this package."""
    return cls.__module__.partition(".")[0] == "octaveconv"


def signature(function):
    """Parameters and result, as text."""
    parts, starred = [], False
    found = inspect.signature(function)
    for parameter in found.parameters.values():
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
        starred |= parameter.kind in (parameter.VAR_POSITIONAL, parameter.KEYWORD_ONLY)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{prefix}{parameter.name}{annotation(parameter.annotation)}{default}")
    return f"({', '.join(parts)}){annotation(found.return_annotation, ' -> ')}"


def annotation(value, before=": "):
    """An annotation as the source has it, or nothing."""
    if value is inspect.Signature.empty or value is None:
        return ""
    text = getattr(value, "__forward_arg__", value)  # of a named tuple's fields
    return before + (text if isinstance(text, str) else text.__name__)


def members(cls):
    """The public members that a class has from this package, not from PyTorch's or Python's classes."""
    found = {}
    for base in filter(made, reversed(cls.__mro__)):
        names = {**inspect.get_annotations(base), **vars(base)}
        for name in sorted(name for name in names if not name.startswith("_")):
            value = inspect.getattr_static(cls, name, None)
            value = getattr(value, "__func__", value)  # of a class method
            if isinstance(value, property):
                found[name] = f"property{signature(value.fget).partition(')')[2]}"
            elif inspect.isfunction(value):
                found[name] = signature(value)
            else:
                found.setdefault(name, f"attribute{annotation(inspect.get_annotations(base).get(name))}")
    return found


def command_line():
    """Every option of every verb: its names, and what it takes."""
    return {
        verb: {
            " ".join(action.option_strings) or action.metavar or action.dest: option(action)
            for action in parser._actions
        }
        for verb, parser in cli.build_parser()[1].items()
    }


def option(action):
    """What an option takes, as text."""
    facts = {"nargs": action.nargs, "choices": action.choices, "default": action.default}
    shown = [f"{key} {value}" for key, value in facts.items() if value not in (None, argparse.SUPPRESS)]
    return ", ".join([*(["required"] if action.required else []), *shown])


if __name__ == "__main__":
    FILE.write_text(json.dumps(inventory(), indent=1) + "\n")
