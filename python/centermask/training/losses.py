"""The losses, each a sum over its positives that the caller divides by their number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, *, alpha: float = 2.0, beta: float = 4.0
) -> Tensor:
    """CornerNet's penalty-reduced focal loss on logits.

    With p = sigmoid(logit) it is -(1-p)^alpha log p where target is 1 and -(1-target)^beta p^alpha log(1-p) elsewhere.
    Taken from logits both logarithms stay finite for every finite logit, where a clamp of p on one side only gives
    log(0) * 0 = NaN at the other.

    Args:
        logits: [N,C,H,W].
        target: [N,C,H,W] in 0..1, exactly 1 at centres.
        weight: Broadcastable to [N,C,H,W]; 0 leaves a cell out (unlabelled class, ignore region).
        alpha: Exponent of the modulating factor.
        beta: Exponent that spares cells near a centre.

    Returns:
        Scalar sum; divide by the number of centres.
    """
    log_p = F.logsigmoid(logits)
    log_not_p = F.logsigmoid(-logits)
    p = torch.sigmoid(logits)
    positive = (target == 1).to(logits.dtype)
    loss = -positive * (1 - p) ** alpha * log_p - (1 - positive) * (1 - target) ** beta * p**alpha * log_not_p
    return (loss if weight is None else loss * weight).sum()


def binary_focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """RetinaNet's focal loss (Lin et al. 2017) against shares of coverage; a scalar sum.

    Args:
        logits: [N,C,H,W].
        target: [N,C,H,W] in 0..1.
        weight: [N,C,H,W], 0 for cells that do not count.
        alpha: Weight of what is covered; 1 - alpha of what is not.
        gamma: Exponent of the modulating factor.
    """
    p = torch.sigmoid(logits)
    covered = alpha * target * (1 - p) ** gamma * F.logsigmoid(logits)
    free = (1 - alpha) * (1 - target) * p**gamma * F.logsigmoid(-logits)
    return -((covered + free) * weight).sum()


def giou_loss(boxes: Tensor, target: Tensor) -> Tensor:
    """1 - generalised IoU (Rezatofighi et al. 2019) of paired boxes [P,4] xyxy -> [P]."""
    left_top = torch.maximum(boxes[:, :2], target[:, :2])
    right_bottom = torch.minimum(boxes[:, 2:], target[:, 2:])
    inner = (right_bottom - left_top).clamp(min=0).prod(dim=1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (target[:, 2:] - target[:, :2]).prod(dim=1) - inner
    outer = (torch.maximum(boxes[:, 2:], target[:, 2:]) - torch.minimum(boxes[:, :2], target[:, :2])).prod(dim=1)
    # 1e-6 square cells: below any real box, above float32's smallest steps.
    area, outer = area.clamp(min=1e-6), outer.clamp(min=1e-6)
    return 1 - inner / area + (outer - area) / outer


def dice_loss(probability: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - dice coefficient with squared sums (V-Net; CondInst), for each instance by itself.

    Args:
        probability: [P,h,w] in 0..1.
        target: [P,h,w] in 0..1.
        weight: [P,h,w], 0 for cells that do not count.

    Returns:
        [P] in 0..1. Pooling all instances of a batch into one coefficient, as some ports do, would let large objects
        drown small ones.
    """
    if weight is not None:
        probability = probability * weight
        target = target * weight
    both = (probability * target).flatten(1).sum(dim=1)
    squares = (probability**2).flatten(1).sum(dim=1) + (target**2).flatten(1).sum(dim=1)
    return 1 - (2 * both + 1e-5) / (squares + 1e-5)


def box_region(boxes: Tensor, margin: float, height: int, width: int) -> Tensor:
    """Cells whose centres lie in boxes [P,4] (xyxy, in cells) grown by `margin` of their sides -> [P,h,w] 0 or 1."""
    grow = (boxes[:, 2:] - boxes[:, :2]) * margin
    low, high = boxes[:, :2] - grow, boxes[:, 2:] + grow
    x = torch.arange(width, device=boxes.device) + 0.5
    y = torch.arange(height, device=boxes.device) + 0.5
    inside_x = (x >= low[:, :1]) & (x < high[:, :1])
    inside_y = (y >= low[:, 1:]) & (y < high[:, 1:])
    return (inside_y[:, :, None] & inside_x[:, None, :]).to(boxes.dtype)
