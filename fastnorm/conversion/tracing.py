"""A model as a torch.fx graph, or an error that says why that would not be the same model.

Tracing fixes the decisions that Python makes in the forward. So a model is refused if a decision
visibly depends on the training flag or leaves a constant behind; and the traced model should be
compared with the original on an example.
"""

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils._pytree import tree_leaves, tree_map_only

from ..modules.base import _Activated
from .activations import has_hooks
from .converting import OURS
from .report import type_name


class _Tracer(fx.Tracer):
    """Looks into modules that contain norms, up to the norms; all other modules are called whole.

    torch.nn's own are called whole too, except Sequential: TransformerEncoderLayer decides much in
    Python.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name):
            return True
        norms: tuple[type[nn.Module], ...] = (_Activated, *OURS)
        inside = any(isinstance(child, norms) for child in m.modules())
        return not inside or isinstance(m, norms) or has_hooks(m) or "forward" in vars(m)


def trace(model: nn.Module, example: tuple[Any, ...]) -> fx.GraphModule:
    """A GraphModule with the model's own leaf modules and the shapes of `example` in its nodes."""
    if has_hooks(model):
        raise ValueError("fuse cannot trace a model that has hooks itself: remove them before")
    parameters = inspect.signature(model.forward).parameters.values()
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if optional := [p.name for p in parameters if p.default is not p.empty or p.kind in variadic]:
        raise ValueError(
            f"fuse cannot trace a forward with optional arguments ({', '.join(optional)}): wrap it "
            "in a module that takes only the example's, or fuse its parts"
        )
    modes = {module: module.training for module in model.modules()}
    graphs = _graphs(model, modes)
    used = {n.target for graph in graphs.values() for n in graph.nodes if n.op == "get_attr"}
    if constants := sorted(used - {name for name, _ in _named_tensors(model)}):
        # The tensor may be random, or made of weights that will change.
        raise ValueError(f"fuse cannot trace a forward that makes tensors: {constants}")
    if str(graphs[False]) != str(graphs[True]):
        raise ValueError(
            "fuse cannot trace a forward that reads self.training (for functional dropout, say): "
            "use a module there, or fuse the parts"
        )
    traced = fx.GraphModule(model, graphs[model.training], type(model).__name__)
    for module in traced.modules():
        if module not in modes:  # GraphModule made it
            module.training = model.training
    found = {id(tensor) for _, tensor in _named_tensors(traced)}  # it knows one name of each module
    if lost := sorted(name for name, tensor in _named_tensors(model) if id(tensor) not in found):
        raise ValueError(f"fuse would lose tensors that the model's forward does not use: {lost}")
    _propagate_shapes(traced, example)
    return traced


def _graphs(model: nn.Module, modes: dict[nn.Module, bool]) -> dict[bool, fx.Graph]:
    """Its graphs in evaluation and in training; flags and attributes are restored."""
    attributes = vars(model).copy()
    try:
        return {mode: _Tracer().trace(model.train(mode)) for mode in (False, True)}
    except Exception as error:
        raise ValueError(f"torch.fx cannot trace {type_name(type(model))}: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name in vars(model).keys() - attributes.keys():  # constants that torch.fx left there
            delattr(model, name)


def _named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Its parameters and buffers, under all of their names."""
    parameters = module.named_parameters(remove_duplicate=False)
    return [*parameters, *module.named_buffers(remove_duplicate=False)]


def restore_names(model: nn.Module, traced: fx.GraphModule) -> None:
    """Give the modules of `traced` the further names that they have in the model, which torch.fx
    does not keep: so both have the same state_dict keys."""
    first: dict[nn.Module, str] = {}
    present = dict(traced.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        known = first.setdefault(module, name)
        if known in present and name not in present:
            traced.add_submodule(name, present[known])
            present = dict(traced.named_modules(remove_duplicate=False))


def _propagate_shapes(traced: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Run a copy, so that running statistics stay, and take over the shapes of its nodes."""
    twin = copy.deepcopy(traced)
    with torch.random.fork_rng(), torch.no_grad():
        ShapeProp(twin).propagate(*_copies(example))
    for node, seen in zip(traced.graph.nodes, twin.graph.nodes, strict=True):
        node.meta["tensor_meta"] = seen.meta.get("tensor_meta")


def compare(model: nn.Module, traced: fx.GraphModule, example: tuple[Any, ...]) -> None:
    """Raise if the two, from one random state, differ by more than rounding can explain."""
    outputs = []
    for module in (model, traced):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            outputs.append(tree_leaves(copy.deepcopy(module)(*_copies(example))))
    expected, found = ([t for t in leaves if isinstance(t, Tensor)] for leaves in outputs)
    same = len(expected) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, 1e-2, 1e-2 * _magnitude(a), equal_nan=True)
        for a, b in zip(expected, found, strict=True)
    )
    if not same:
        raise ValueError(
            "the traced model answers otherwise than the model on the example: its forward makes a "
            "decision that torch.fx cannot see. Fuse its parts"
        )


def _magnitude(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _copies(example: tuple[Any, ...]) -> tuple[Any, ...]:
    """A copy of the example: a model may write to its inputs."""
    return tree_map_only(Tensor, lambda t: t.detach().clone(), example)
