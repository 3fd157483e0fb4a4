"""What octavify promises of any network, checked on one of `foreign_networks`."""

import copy
import json
from contextlib import contextmanager

import safetensors.torch
import torch
import torch.distributed as dist
from foreign_networks import Foreign
from helpers import assert_close
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import octaveconv as oc
from octaveconv._modes import copied
from octaveconv.octavify.octavify import rebuild
from octaveconv.octavify.parts import leaves

SMALL = "perhaps a low map, half as large as the high one"


def answers(model, images, training=False):
    """The tensors that a network returns, with random numbers of one seed, in a mode; it is in its own mode after."""
    modes = {module: module.training for module in model.modules()}
    torch.manual_seed(0)
    try:
        return list(leaves(model.train(training)(*(image.clone() for image in images))))
    finally:
        for module, mode in modes.items():
            module.training = mode


def same(found, expected):
    """Whether all numbers are equal, and those that are none stand in the same places."""
    return len(found) == len(expected) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(), y.nan_to_num())
        for x, y in zip(found, expected)
    )


def state(model):
    return [value.clone() for value in model.state_dict().values()]


def modes(model):
    return [module.training for module in model.modules()]


def answers_alike(one, other, images):
    """In each mode, and after training mode again; of networks that a call in training mode changes, copies."""
    one, other = copied(one), copied(other)
    for training in (False, True, False):
        expected = answers(one, images, training)
        assert same(answers(other, images, training), expected), f"other answers, training={training}"
    assert same(state(other), state(one)), "a call leaves another state"


def from_file(model, octave, plan, alpha, options, path):
    """The network that a file with the weights makes; ``path`` gets the file."""
    fresh = copied(model)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
    safetensors.torch.save_model(octave, str(path))
    record = json.loads(json.dumps(plan.conversion))
    if len(model.images) == 1:
        made = rebuild(fresh, record)
    else:
        made, _ = oc.octavify(fresh, alpha, model.images[0], **options)
    safetensors.torch.load_model(made, str(path))
    return made


@contextmanager
def one_process():
    """A group of one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def trains(model, images):
    """Whether a network can be trained, for its own code can spoil a gradient in place."""
    try:
        sum(y.sum() for y in answers(copied(model), images, training=True)).backward()
    except RuntimeError:
        return False
    return True


def wrapped(octave, images, trains):
    """Wrapped for several processes, it gives the same answers and gradients."""
    plain, wrapped = copied(octave), copied(octave)
    with one_process():
        parallel = DistributedDataParallel(wrapped)
        assert same(answers(parallel, images), answers(plain, images)), "other answers in DistributedDataParallel"
        for net in (parallel, plain) if trains else ():
            sum(y.sum() for y in answers(net, images, training=True)).backward()
    for one, other in zip(plain.parameters(), wrapped.parameters()) if trains else ():
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad), "other gradients in DistributedDataParallel"


def check(seed, path):
    """Check one network; return what became of it.

    Raises:
        AssertionError: a promise is broken.
    """
    model = Foreign(seed).train(seed % 3 == 0)
    (images, others), draw = model.images, model.draw
    before, mode, alpha = state(model), modes(model), draw.choice((0.25, 0.5))
    options = dict(min_size=2, stem=draw.random() < 0.5)
    dense, _ = oc.octavify(model, 0, images)
    octave, plan = oc.octavify(model, alpha, images, **options)
    assert same(state(model), before), "the given network changed"
    assert modes(model) == mode, "the given network's mode changed"
    assert octave.state_dict().keys() == model.state_dict().keys()
    of_names = {name: module.training for name, module in model.named_modules()}
    assert all(of_names.get(name, octave.training) == m.training for name, m in octave.named_modules()), "another mode"
    for x in (images, others):
        assert same(answers(dense, x), answers(model, x)), "another answer at alpha 0"
    answers_alike(model, dense, others)
    compare(model, octave, images)
    refused = ""
    try:
        compare(model, octave, others)
    except ValueError as error:  # a border that is reflected needs a map that is large enough
        refused = str(error)
    assert not refused or SMALL in refused, refused
    one = tuple(image[:1] for image in images)
    if not plan.parts:  # what looks at values cannot be counted
        assert plan.macs_after == oc.cost(octave, one).counted_macs, "other multiply-adds than counted"
    answers_alike(octave, copy.deepcopy(octave), images)
    answers_alike(octave, from_file(model, octave, plan, alpha, options, path), images)
    octave.load_state_dict(model.state_dict())
    if not any(isinstance(part, nn.SyncBatchNorm) for part in model.modules()):  # which only GPUs wrap
        wrapped(octave, images, trains(model, images))
    convs = [layer for layer in plan.layers if layer.convolves]
    return {
        "forms": model.names, "convolutions": len(convs), "octave": sum(layer.octave for layer in convs),
        "parts": sum(not part.why for part in plan.parts), "refused": refused, "flat": model.flat,
    }  # fmt: skip


def compare(model, octave, images):
    """An octave network's answers beside the dense one's, and the plain formulas."""
    found, expected = answers(octave, images), answers(model, images)
    assert [y.shape for y in found] == [y.shape for y in expected], "answers of another shape"
    with oc.backend("reference"):
        for y, z in zip(found, answers(octave, images)):
            assert_close(y.detach(), z.detach(), "unlike the reference")
    for y, z in zip(found, expected) if model.flat else ():
        assert_close(y.detach(), z.detach(), "constant maps changed")
