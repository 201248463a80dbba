"""Batch norm folding: affine in eval mode, a batch norm can be merged into the convolution before it."""

from __future__ import annotations

import copy

from torch import fx, nn


def folded(network: nn.Module) -> nn.Module:
    """A frozen copy in eval mode in which every BatchNorm2d that directly follows a convolution is folded into it.

    The copy's outputs equal those of ``network.eval()`` up to rounding; it keeps its class and its module names, and
    folded norms become identities (timm's ``BatchNormAct2d``, its activation).  A norm is left unchanged if another
    module also uses the convolution's output, if it does not follow a convolution, as in pre-activation networks, if
    either module is used twice, has hooks or has a weight that the network reads itself, and throughout a network that
    ``torch.fx`` cannot trace.  Not suitable for code that reads BatchNorm statistics.
    """
    own = copy.deepcopy(network).eval().requires_grad_(False)
    for conv_name, norm_name in _pairs(own):
        conv, norm = own.get_submodule(conv_name), own.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        _fold(conv, norm)
        own.set_submodule(norm_name, _without_norm(norm))
    return own.eval()  # the modules that replace norms are new


class _Tracer(fx.Tracer):
    """Treats norms as leaves, including those of timm."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


def _pairs(network: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, norm) where only the norm uses the convolution's output."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return []
    try:
        graph = _Tracer().trace(network)
    except Exception:  # tracing runs the network's code on proxies, which may raise anything
        return []
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used = [id(modules[node.target]) for node in calls]
    # Modules whose weights the network reads itself, beside calling them.
    used += [id(modules.get(str(node.target).rpartition(".")[0])) for node in graph.nodes if node.op == "get_attr"]
    pairs: list[tuple[str, str]] = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in calls or len(before.users) > 1:
            continue
        conv, norm = modules[before.target], modules[node.target]
        if used.count(id(conv)) == used.count(id(norm)) == 1 and _can_fold(conv, norm):
            pairs.append((str(before.target), str(node.target)))
    return pairs


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    # A subclass may change its weight in its forward pass, as weight-standardised convolutions do.
    known = type(conv) is nn.Conv2d and (type(norm) is nn.BatchNorm2d or _is_timms(norm))
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in (conv, norm))
    return known and not hooked and norm.running_mean is not None


def _is_timms(norm: nn.Module) -> bool:
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.startswith("timm.")


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Scale the filters and shift the bias, in float64, so that they are rounded once."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() if conv.bias is None else conv.bias.double() - norm.running_mean.double()
    shift = bias * scale if norm.bias is None else bias * scale + norm.bias.double()
    # New parameters, as another layer may share the old ones; the memory format stays.
    scaled = conv.weight.double() * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(scaled.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)


def _without_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """The module that replaces a folded norm: an identity, or the dropout and the activation of timm's norms."""
    return nn.Sequential(norm.get_submodule("drop"), norm.get_submodule("act")) if _is_timms(norm) else nn.Identity()
