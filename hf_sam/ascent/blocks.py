"""The blocks of a network in their order, as its library divides it."""

import re
from collections.abc import Iterator

from torch import nn

# What transformers calls a block: all of its models' derive from this class.
CHECKPOINTED = "GradientCheckpointingLayer"


def last_blocks(model: nn.Module, share: float) -> set[nn.Parameter]:
    """Return the parameters of a network's last blocks, and of what comes after them.

    Args:
        model: Unwrapped; the order is that of its `named_parameters`.
        share: Of the number of blocks, above 0 and at most 1; at least one block is taken.

    Raises:
        ValueError: If the network has no blocks.
    """
    blocks = [name for name in blocks_of(model) if list(model.get_submodule(name).parameters())]
    if not blocks:
        raise ValueError(
            f"`perturb=last:{share:g}` must find blocks, got a {type(model).__name__} without any: "
            "write the names of modules instead, separated by commas."
        )
    chosen = tuple(f"{block}." for block in blocks[-max(1, round(share * len(blocks))) :])
    named = list(model.named_parameters())
    numbers = (i for i, (name, _) in enumerate(named) if name.startswith(chosen))
    # none where the chosen blocks share all their parameters with earlier ones
    return {param for _, param in named[next(numbers, len(named)) :]}


def blocks_of(model: nn.Module) -> list[str]:
    """Name the blocks of a network, in its modules' order; outermost ones only.

    Those are, by the first rule that finds any, what timm gives a learning rate of its own when
    rates fall layer by layer (`group_matcher`); what transformers checkpoints as one; what an
    `nn.Sequential` or `nn.ModuleList` lists: modules that have parts, or else single layers.
    """
    for rule in (_of_timm, _of_transformers, _of_lists, _layers_of_lists):
        if found := set(rule(model)):
            names = (name for name, _ in model.named_modules(remove_duplicate=False))
            ordered = [name for name in names if name in found]
            return [n for n in ordered if not any(_is_inside(n, other) for other in found)]
    return []


def _is_inside(name: str, other: str) -> bool:
    return name.startswith(f"{other}.")


def _of_timm(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        matcher = getattr(module, "group_matcher", None)
        groups = matcher(coarse=False) if matcher is not None else None
        if not isinstance(groups, dict) or "blocks" not in groups:  # some have a function
            continue
        patterns = groups["blocks"]
        pairs = [(patterns, None)] if isinstance(patterns, str) else patterns
        # a pattern with a number of its own is of what belongs to a block without being one
        own = [re.compile(pattern) for pattern, number in pairs if number is None]
        prefix = f"{name}." if name else ""
        for inner, _ in module.named_modules():
            if any(pattern.fullmatch(inner) for pattern in own):
                yield prefix + inner
        return


def _of_transformers(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if any(kind.__name__ == CHECKPOINTED for kind in type(module).__mro__):
            yield name


def _of_lists(model: nn.Module) -> Iterator[str]:
    named = _layers_of_lists(model)
    yield from (name for name in named if any(True for _ in model.get_submodule(name).children()))


def _layers_of_lists(model: nn.Module) -> Iterator[str]:
    yield from (name for name, module in _listed(model) if any(True for _ in module.parameters()))


def _listed(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    lists = (nn.Sequential, nn.ModuleList)
    for name, module in model.named_modules():
        if isinstance(module, lists):
            children = (
                (f"{name}.{child}".lstrip("."), inner) for child, inner in module.named_children()
            )
            yield from (pair for pair in children if not isinstance(pair[1], lists))
