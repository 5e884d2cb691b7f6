"""`fuse` with an example: patterns around norms in the graph that torch.fx traces."""

import copy
import operator
from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..activations import canonical
from ..contract import side_input
from . import fusion
from .activations import activation_of, has_hooks
from .converting import OURS
from .report import Change, Conversion, Kept, type_name
from .tracing import compare, restore_names, trace

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
ADDS_IN_PLACE = (operator.iadd, "add_")
ACTIVATIONS: dict[Any, str] = {
    F.relu: "relu", torch.relu: "relu", F.relu_: "relu", "relu": "relu", "relu_": "relu",
    F.silu: "silu", F.gelu: "gelu", F.hardswish: "hardswish", F.mish: "mish",
    F.leaky_relu: "leaky_relu", F.elu: "elu",
}  # fmt: skip
# Functions and methods that write to their first argument, and those whose result may be a view.
WRITES = ("iadd", "isub", "imul", "itruediv", "setitem")
VIEWS = (
    "alias", "as_strided", "chunk", "contiguous", "detach", "diagonal", "expand", "expand_as",
    "flatten", "getitem", "movedim", "narrow", "permute", "ravel", "reshape", "select", "split",
    "squeeze", "swapaxes", "t", "tensor_split", "to", "transpose", "type_as", "unbind", "unflatten",
    "unfold", "unsqueeze", "view", "view_as",
)  # fmt: skip
VIEWING = (nn.Flatten, nn.Unflatten, nn.Sequential)
OPTIONS = {"gelu": "approximate", "leaky_relu": "negative_slope", "elu": "alpha"}


def fuse_traced(model: nn.Module, example: tuple[Any, ...], fold: bool) -> Conversion:
    """`fastnorm.fuse` of a model that is traced. See there."""
    traced = trace(model, example)
    changed: list[Change] = []
    kept: list[Kept] = []
    _skip_identities(traced)
    calls = Counter(n.target for n in traced.graph.nodes if n.op == "call_module")
    for step in (_fold, _fuse) if fold else (_fuse,):
        for node in [n for n in traced.graph.nodes if n.op == "call_module"]:
            outcome = step(traced, node, calls)
            if isinstance(outcome, Change):
                changed.append(outcome)
            elif outcome is not None and outcome not in kept:  # once, however often it is called
                kept.append(outcome)
    traced.delete_all_unused_submodules()
    restore_names(model, traced)
    traced.graph.lint()
    traced.recompile()
    compare(model, traced, example)
    return Conversion(traced, changed, kept)


def _skip_identities(traced: fx.GraphModule) -> None:
    """Models use nn.Identity for an option not chosen; it must not part a norm from the next."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(node.args[0], fx.Node):
            module = traced.get_submodule(node.target)
            if type(module) is nn.Identity and not has_hooks(module):
                node.replace_all_uses_with(node.args[0])
                traced.graph.erase_node(node)


class _Pattern(NamedTuple):
    """norm -> activation, or norm -> add -> activation."""

    norm: fx.Node
    add: fx.Node | None
    residual: fx.Node | None
    last: fx.Node
    activation: str


def _fuse(traced: fx.GraphModule, node: fx.Node, calls: Counter[Any]) -> Change | Kept | None:
    """Fuse the pattern that starts with the norm that `node` calls, if there is one."""
    name = str(node.target)
    norm = traced.get_submodule(name)
    if not (fusion.is_plain_norm(norm) or type(norm) in OURS):
        return None
    pattern = _match(traced, node)
    if pattern is None:
        return None
    if reason := _reason_to_keep(traced, pattern, norm, calls):
        return Kept(name, type_name(type(norm)), reason)
    fused = copy.copy(norm)  # the model's own norm stays as it is; the copy shares its tensors
    vars(fused)["activation"] = pattern.activation
    traced.set_submodule(name, fused)
    added = pattern.add is not None
    with traced.graph.inserting_before(pattern.add or node):
        arguments = (node.args[0], pattern.residual) if added else (node.args[0],)
        call = traced.graph.call_module(name, arguments)
    call.meta = pattern.last.meta
    pattern.last.replace_all_uses_with(call)
    for old in (pattern.last, pattern.add, node):
        if old is not None:
            traced.graph.erase_node(old)
    steps = f"{type_name(type(norm))}{' + add' if added else ''} + {pattern.activation}"
    return Change(name, steps, fusion.describe(fused) + (" with residual" if added else ""))


def _match(traced: fx.GraphModule, node: fx.Node) -> _Pattern | None:
    last, add, residual = _only_user(node), None, None
    if last is not None and last.op in ("call_function", "call_method") and last.target in ADDS:
        add = last
        others = [a for a in add.args if a is not node]
        written = add.target in ADDS_IN_PLACE and add.args[0] is not node
        if len(add.args) != 2 or len(others) != 1 or add.kwargs or written:
            return None
        if not isinstance(others[0], fx.Node):
            return None
        residual, last = others[0], _only_user(add)
    activation = None if last is None else _activation(traced, last)
    if last is None or activation is None:
        return None
    return _Pattern(node, add, residual, last, activation)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(traced: fx.GraphModule, node: fx.Node) -> str | None:
    """Our name for the activation that the node computes, or None."""
    if node.op == "call_module":
        return activation_of(traced.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method") or node.target not in ACTIVATIONS:
        return None
    name = ACTIVATIONS[node.target]
    option = dict(zip((OPTIONS.get(name),), node.args[1:2], strict=False)) | dict(node.kwargs)
    value = option.get(OPTIONS.get(name))  # inplace or not makes no difference if there is one user
    match value:
        case None:
            return canonical(name, "fuse")
        case "none" | "tanh" if name == "gelu":
            return "gelu" if value == "none" else "gelu_tanh"
        case float() | int():
            return canonical((name, value), "fuse")
    return None


def _reason_to_keep(
    traced: fx.GraphModule, pattern: _Pattern, norm: nn.Module, calls: Counter[Any]
) -> str | None:
    node, add, residual, last, activation = pattern
    if type(norm) in OURS:
        return "torch's: call fastnorm.convert first"
    if calls[node.target] > 1:
        return "it is called more than once"
    if len(node.args) != 1 or node.kwargs:
        return "it is called with more than its input"
    after = traced.get_submodule(str(last.target)) if last.op == "call_module" else None
    if has_hooks(norm) or (after is not None and has_hooks(after)):
        return "it or the activation has hooks"
    if add is None or residual is None:
        return None
    mine, other = node.meta["tensor_meta"], residual.meta["tensor_meta"]
    # Something that is no tensor, or several tensors, has no shape.
    shapes = [(getattr(m, "shape", None), getattr(m, "dtype", None)) for m in (mine, other)]
    if shapes[0] != shapes[1]:
        return "the tensor added to it has another shape or dtype"
    nodes = list(traced.graph.nodes)
    if any(_may_write(traced, n) for n in nodes[nodes.index(node) + 1 : nodes.index(add)]):
        return "between it and the addition something may change its input in place"
    if side_input(activation, True) == "residual":  # it is kept for the backward
        origin = _origin(traced, residual)
        for later in nodes[nodes.index(add) + 1 :]:
            tensors = [a for a in later.args if isinstance(a, fx.Node)]
            if _may_write(traced, later) and origin in [_origin(traced, a) for a in tensors]:
                return "the tensor added to it may change in place later"
    return None


def _origin(traced: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node whose tensor this one may be a view of, as far as can be seen."""
    while node.args and isinstance(node.args[0], fx.Node):
        if node.op == "call_module":
            module = traced.get_submodule(str(node.target))
            if not (isinstance(module, VIEWING) or getattr(module, "inplace", False)):
                break
        elif node.op in ("call_function", "call_method"):
            name = _name_of(node)
            if not (name.endswith("_") or name in (*VIEWS, *WRITES)):
                break
        else:
            break
        node = node.args[0]
    return node


def _name_of(node: fx.Node) -> str:
    """The name of the function or method that it calls."""
    return node.target if isinstance(node.target, str) else node.target.__name__


def _may_write(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the node's call may change an existing tensor, as far as can be seen."""
    if node.op == "call_module":
        module = traced.get_submodule(str(node.target))
        known = type_name(type(module)).startswith(("torch.nn.", "fastnorm."))
        return not known or any(getattr(m, "inplace", False) for m in module.modules())
    if node.op not in ("call_function", "call_method"):
        return False
    name = _name_of(node)
    in_place = name.endswith("_") or name in WRITES
    flagged = any(value is True for value in (*node.args, *node.kwargs.values()))  # inplace=True
    return in_place or flagged or "out" in node.kwargs


def _fold(traced: fx.GraphModule, node: fx.Node, calls: Counter[Any]) -> Change | Kept | None:
    """Fold the batch norm that `node` calls into the only layer that feeds it, if it can."""
    norm, before = traced.get_submodule(str(node.target)), (*node.args, None)[0]
    if not fusion.is_batch_norm(norm) or not isinstance(before, fx.Node):
        return None
    if before.op != "call_module" or len(before.users) != 1:
        return None
    name, layer = str(node.target), traced.get_submodule(str(before.target))
    if type(layer) not in (*fusion.CONVS, *fusion.TRANSPOSED, nn.Linear):
        return None
    reason = fusion.reason_not_to_fold(layer, norm)
    if calls[node.target] > 1 or calls[before.target] > 1:
        reason = "it or the layer before it is called more than once"
    elif len(node.args) != 1 or node.kwargs:
        reason = "it is called with more than its input"
    elif isinstance(layer, nn.Linear) and len(before.meta["tensor_meta"].shape) != 2:
        reason = "its channels are not those of the linear layer"
    if reason:
        return Kept(name, type_name(type(norm)), reason)
    folded, after = fusion.folded(layer, norm)
    traced.set_submodule(str(before.target), folded)
    traced.set_submodule(name, after)
    if isinstance(after, nn.Identity):
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    old = f"{type_name(type(layer))} + {fusion.describe(norm)}"
    return Change(name, old, f"in {before.target}")
