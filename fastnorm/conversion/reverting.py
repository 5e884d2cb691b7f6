"""The way back from fastnorm's norms to torch.nn's and libraries', in place."""

from torch import nn

from ..checks import check_model
from ..modules.base import _Activated
from ..modules.batch_instance import _BatchInstanceNorm
from .converting import TORCHS, is_known, subclass_of
from .origin import ATTRIBUTE, origin_of, reason_not_to_release, release
from .report import Change, Conversion, Kept, label, type_name
from .sequential_fusion import fused_activations


def revert(model: nn.Module) -> Conversion:
    """Make every norm of fastnorm's in `model` torch.nn's again, in place: `convert` undone.

    Norms that `convert` took from a library return to the library's class with all their
    attributes. Norms stay the same objects, as in `convert`. Activations that `fuse` took out of a
    Sequential return to their places. Other changes are not undone: norms that `convert(to=...)`
    made become torch's norms of the new kind, and convolutions that `fuse(fold=True)` changed stay.
    Norms that torch.nn lacks and `convert` never makes (SwitchableNorm, say) stay and are listed.

    Raises ValueError and leaves the model as it was if torch.nn cannot express a norm:
    batch-instance norm, a weight that counts from 1, or an activation that `fuse` did not put there
    (after `fuse` with an example, go back to the original model). Also if a library's class cannot
    express it because settings were changed. Raises TypeError if `model` is no module.
    """
    check_model("revert", model)
    placeholders = fused_activations(model)
    restored = {id(norm) for norm, _, _, _ in placeholders}
    norms: list[tuple[str, nn.Module]] = []
    kept: list[Kept] = []
    refused: list[str] = []
    for name, module in model.named_modules():
        if origin := origin_of(module):
            if reason := reason_not_to_release(module, origin, id(module) in restored):
                refused.append(f"{label(name)}: {reason}")
            else:
                norms.append((name, module))
        elif not isinstance(module, _Activated):
            continue
        elif isinstance(module, _BatchInstanceNorm):
            refused.append(f"{label(name)}: torch.nn has no batch-instance norm")
        elif type(module) not in TORCHS:
            reason = "torch.nn has no such norm" if is_known(module) else subclass_of(module)
            kept.append(Kept(name, type_name(type(module)), reason))
        elif getattr(module, "zero_centered", False):
            refused.append(
                f"{label(name)}: torch.nn's norm does not count its weight from 1; add 1 to it and "
                "set zero_centered to False"
            )
        elif module.activation is not None and id(module) not in restored:
            refused.append(
                f"{label(name)}: torch.nn's norm has no activation={module.activation!r}; set it "
                "to None and apply it after the norm"
            )
        else:
            norms.append((name, module))
    if refused:
        raise ValueError("cannot go back:\n  " + "\n  ".join(refused))
    for _, sequential, key, activation in placeholders:
        sequential._modules[key] = activation
    changed = []
    for name, module in norms:
        old = type_name(type(module))
        if origin := origin_of(module):
            release(module, origin)
        else:
            del vars(module)["activation"]
            for key in ("zero_centered", ATTRIBUTE):  # the latter if its class was changed since
                vars(module).pop(key, None)
            module.__class__ = TORCHS[type(module)]
        changed.append(Change(name, old, type_name(type(module))))
    return Conversion(model, changed, kept)
