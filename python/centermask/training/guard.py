"""What is told when a training breaks: the loss term, the layer and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from centermask.training.loader import TrainBatch
from centermask.training.objective import Objective


@torch.no_grad()
def first_bad_layer(objective: Objective, batch: TrainBatch) -> str:
    """Runs the network once more and names the first layer whose output is not finite ("" if all are)."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            tensors = output if isinstance(output, list | tuple) else [output]
            if not found and any(isinstance(t, Tensor) and not bool(t.isfinite().all()) for t in tensors):
                found.append(name)

        return hook

    model = objective.model
    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules() if not list(m.children())]
    try:
        features = model(objective.normalised(batch)).features
        # Training reads these at some cells only; one picture at a time, since everywhere they are large.
        for head in filter(None, (model.size, model.offset, model.mask_params)):
            for feature in features:
                head(feature[None])
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def explanation(
    objective: Objective,
    parts: Sequence[tuple[TrainBatch, Mapping[str, Tensor]]],
    names: Mapping[int, str],
    step: int,
) -> str:
    """Why a step is not taken.

    Args:
        objective: With the gradients of the step.
        parts: The step's batches in this process, each with its loss terms.
        names: The file of each picture, by its id.
        step: Its number.
    """
    layer, terms, shown = "", list[str](), list[TrainBatch]()
    for batch, values in parts:
        bad = [name for name, value in values.items() if not bool(value.isfinite())]
        found = first_bad_layer(objective, batch)
        if bad or found:
            shown.append(batch)
        terms += [name for name in bad if name not in terms]
        layer = layer or found
    gradients = [
        name
        for name, parameter in objective.model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
    # Where terms and layers are sound, any picture of the step may be the one whose gradient is not.
    pictures = [names.get(int(i), str(int(i))) for batch in shown or [b for b, _ in parts] for i in batch.image_ids]
    return (
        f"training broke at step {step}: "
        f"loss terms not finite: {terms or 'none'}; first layer with a bad output: {layer or 'none'}; "
        f"gradients not finite: {gradients[:3] or 'none'}; pictures: {pictures}. "
        "A lower learning rate, a longer warm-up or clipping usually mends it; last.pt is untouched."
    )
