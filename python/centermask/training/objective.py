"""The model together with its losses: one module whose forward gives the loss terms of a batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centermask.config import STRIDE, ModelConfig
from centermask.nn.heads import HEATMAP_BIAS, Head, gather_rows
from centermask.nn.model import CenterMask, DenseOutputs, decode_size, dynamic_mask_logits, shape_mask_probability
from centermask.training.loader import TrainBatch
from centermask.training.losses import binary_focal_loss, box_region, dice_loss, focal_loss, giou_loss
from centermask.training.settings import TrainConfig
from centermask.training.targets import (
    Positives,
    heatmap_targets,
    jitter_boxes,
    sample_positives,
    semantic_targets,
)

MASK_REGION_MARGIN = 0.25
"""Masks are learned inside the box grown by this much: more than the Predictor's margin, so that its rim is learned."""


def heatmap_weights(batch: TrainBatch, target: Tensor, *, one_class: bool = False) -> Tensor:
    """[N,C,h,w]: 0 where a picture's set does not label the class or a region is to be ignored, else 1.

    Args:
        batch: What is known about the pictures.
        target: [N,C,h,w] in 0..1.
        one_class: What is an object of one class is of no other: there, as far as `target` says so, the absence of
            the classes counts that the set does not label.
    """
    weight = batch.known_classes[:, :, None, None].to(target.dtype).expand(target.shape)
    if one_class:
        weight = torch.maximum(weight, target.amax(dim=1, keepdim=True))
    if batch.ignore.shape[0]:
        weight = weight.clone()
        hidden = torch.zeros_like(weight).index_put(
            (batch.ignore_batch_index, batch.ignore_labels), (batch.ignore > 0).to(weight.dtype), accumulate=True
        )
        # An object's own centre counts even inside a crowd.
        weight = torch.where((hidden > 0) & (target < 1), 0.0, weight)
    return weight


class LossTask:
    """What `Objective` computes the loss of.

    A plain class on purpose: Fabric looks into tuples, dictionaries and dataclasses, and in mixed precision would round
    the boxes in them to 8 bits.

    Args:
        batch: See `TrainBatch`.
        generator: Source of randomness, on the batch's device.
        normaliser: Number of instances that the sums are divided by; where several processes or several batches make
            one step, see `Objective.amounts`.
        cells: Likewise of the auxiliary loss; None for this batch's own.
    """

    def __init__(
        self, batch: TrainBatch, generator: torch.Generator, normaliser: Tensor, cells: Tensor | None = None
    ) -> None:
        self.batch = batch
        self.generator = generator
        self.normaliser = normaliser
        self.cells = cells


class Objective(nn.Module):
    """Loss terms of a batch.

    Args:
        model: The model that learns.
        config: Loss settings.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: CenterMask, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config
        preprocess = model.config.preprocess
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1), persistent=False)
        self.dense = model.forward
        self.semantic: Head | None = None
        if config.aux_weight > 0 and model.config.mask_head != "shape":
            # It learns with the model and is thrown away after. The `shape` head has such a map of its own.
            channels, hidden = model.config.neck_channels[-1], model.config.head_channels
            self.semantic = Head(channels, hidden, len(model.config.class_names), bias=HEATMAP_BIAS)

    def compile_dense(self) -> None:
        """Compiles the dense part; the losses, whose shapes change with each batch, stay as they are."""
        self.dense = torch.compile(self.model.forward, dynamic=False)

    def forward(self, task: LossTask) -> dict[str, Tensor]:
        """Weighted loss terms: scalars `heatmap`, `box` and, with a mask head, `mask`; their sum is to be minimised."""
        dense: DenseOutputs = self.dense(self.normalised(task.batch))
        # Losses are in float32 whatever the network ran in.
        with torch.autocast(dense.heatmap.device.type, enabled=False):
            dense = DenseOutputs(*(None if t is None else t.float() for t in dense))  # type: ignore[arg-type]
            return self.losses(dense, task.batch, task.generator, task.normaliser, task.cells)

    @torch.no_grad()
    def amounts(self, batch: TrainBatch) -> Tensor:
        """[2]: the number of instances and the weight of the auxiliary loss, which a step's sums are divided by.

        The amounts of a step are those of all its batches together. As each process has gradients of its own, whose
        mean is taken, it divides by the mean over the processes of the sum over its batches.
        """
        cells = torch.ones((), device=batch.image.device)
        if self.config.aux_weight > 0:
            cells = self.semantic_target(batch)[2]
        return torch.stack([torch.full_like(cells, len(batch.labels)), cells])

    def normalised(self, batch: TrainBatch) -> Tensor:
        """The network's input [N,3,S,S] float32, as `centermask.preprocess` makes it."""
        images = batch.image.permute(0, 3, 1, 2)
        if self.model.config.preprocess.color == "bgr":
            images = images.flip(1)  # mean and std are in the network's own order
        return (images.float() - self.mean) / self.std

    def losses(
        self,
        dense: DenseOutputs,
        batch: TrainBatch,
        generator: torch.Generator,
        normaliser: Tensor,
        amount: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms from the dense outputs; arguments as of `LossTask`."""
        config = self.config
        shape = dense.heatmap.shape
        height, width = shape[2:]
        boxes = batch.boxes / STRIDE
        target = heatmap_targets(boxes, batch.labels, batch.batch_index, (*shape,), config.radius)
        heatmap = focal_loss(dense.heatmap, target, self.weights(batch, target)) / normaliser

        cells = sample_positives(boxes, batch.batch_index, height, width, config.box_samples, generator)
        patches = gather_rows(dense.features, cells.batch_index, cells.y, cells.x)  # [P,F*9]
        terms = {
            "heatmap": config.heatmap_weight * heatmap,
            "box": config.box_weight * self.box_loss(patches, cells, boxes[cells.instance]) / normaliser,
        }
        if config.aux_weight > 0:
            terms["semantic"] = config.aux_weight * self.semantic_loss(dense, batch, amount)
        if dense.mask_features is not None:
            some = min(config.mask_samples, config.box_samples)
            keep = torch.arange(len(cells.instance), device=boxes.device).view(-1, config.box_samples)
            keep = keep[:, :some].flatten()
            whole = len(keep)
            if whole > config.mask_limit:
                # A crowd's masks would need gigabytes; a random part of them has the same mean.
                chosen = torch.randperm(whole, generator=generator, device=keep.device)[: config.mask_limit]
                keep = keep[chosen]
            mask = self.mask_loss(dense.mask_features, patches, cells, keep, boxes, batch, generator)
            scale = whole / max(len(keep), 1) / some
            terms["mask"] = config.mask_weight * mask * scale / normaliser
        return terms

    def weights(self, batch: TrainBatch, target: Tensor) -> Tensor:
        """`heatmap_weights` as the settings say."""
        return heatmap_weights(batch, target, one_class=self.config.one_class)

    def semantic_target(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        """What the auxiliary loss compares with [N,C,h,w], the weight of its cells [N,C,h,w], and their amount."""
        head, classes = self.model.config, batch.known_classes.shape[1]
        channels = classes if self.semantic is not None else head.mask_channels
        labels = batch.labels if channels > 1 else torch.zeros_like(batch.labels)
        shape = (len(batch.image), channels, *batch.masks.shape[1:])
        covered = semantic_targets(batch.masks, labels, batch.batch_index, shape)
        if channels == classes:
            weight = self.weights(batch, covered)
        else:
            # One map for all classes: a cell without an object is known to be free only where all classes are labelled.
            free = batch.known_classes.all(dim=1)[:, None, None, None] & (self.ignored(batch)[:, None] == 0)
            weight = ((covered > 0) | free).to(covered.dtype)
        return covered, weight, (covered if self.semantic is not None else weight).sum()

    def semantic_loss(self, dense: DenseOutputs, batch: TrainBatch, amount: Tensor | None = None) -> Tensor:
        """How well each cell tells what covers it, per covered cell.

        CondInst learns a map of the classes beside the masks; the CenterMask paper learns its saliency directly.

        Args:
            dense: The network's outputs.
            batch: What they are to be compared with.
            amount: What the sum is divided by; None for this batch's own.
        """
        covered, weight, own = self.semantic_target(batch)
        divisor = own.clamp(min=1.0) if amount is None else amount
        if self.semantic is not None:
            return binary_focal_loss(self.semantic(dense.features), covered, weight) / divisor
        assert dense.mask_features is not None
        # Saliency is a factor of the masks and must mean what it says: the focal loss would shrink it.
        return F.binary_cross_entropy_with_logits(dense.mask_features, covered, weight, reduction="sum") / divisor

    @staticmethod
    def ignored(batch: TrainBatch) -> Tensor:
        """[N,h,w]: how many regions to be ignored, of any class, touch each cell."""
        hidden = torch.zeros(len(batch), *batch.masks.shape[1:], device=batch.image.device)
        return hidden.index_add(0, batch.ignore_batch_index, (batch.ignore > 0).to(hidden.dtype))

    def box_loss(self, patches: Tensor, cells: Positives, target: Tensor) -> Tensor:
        """Sum over objects of the mean over their cells."""
        config, model = self.config, self.model
        if config.box_loss == "giou":
            loss = giou_loss(model.boxes_at(patches, cells.y, cells.x), target)
        else:
            # CenterNet: L1 on the size (weight 0.1) and on the offset from the cell.
            size = model.size.at(patches)
            if model.config.box_coding == "exp":
                size = decode_size(size, "exp")  # a linear size is learned as it is: cut off at 0 it has no gradient
            center = (target[:, :2] + target[:, 2:]) / 2
            offset = center - torch.stack([cells.x, cells.y], dim=1).to(center.dtype)
            loss = (
                0.1 * F.l1_loss(size, target[:, 2:] - target[:, :2], reduction="none")
                + F.l1_loss(model.offset_at(patches).expand_as(offset), offset, reduction="none")
            ).sum(dim=1)
        return loss.sum() / config.box_samples

    def mask_loss(
        self,
        mask_features: Tensor,
        patches: Tensor,
        cells: Positives,
        keep: Tensor,
        boxes: Tensor,
        batch: TrainBatch,
        generator: torch.Generator,
    ) -> Tensor:
        """Sum of the dice losses of the cells `keep`, each inside its object's grown box."""
        model = self.model
        assert model.mask_params is not None
        params = model.mask_params.at(patches[keep])
        cells = Positives(*(t[keep] for t in cells))
        own = boxes[cells.instance]
        seen = jitter_boxes(own, self.config.mask_jitter, generator)
        if model.config.mask_head == "dynamic":
            probability = torch.sigmoid(dynamic_mask_logits(mask_features, params, seen, cells.batch_index))
        else:
            labels = batch.labels[cells.instance]
            probability = shape_mask_probability(mask_features, params, seen, cells.batch_index, labels)
        target = batch.masks[cells.instance].float() / 255
        region = box_region(own, MASK_REGION_MARGIN, *target.shape[1:])
        return dice_loss(probability, target, region).sum()


def default_model_config(
    config: TrainConfig, class_names: tuple[str, ...], category_ids: tuple[int, ...]
) -> ModelConfig:
    """The model that the settings ask for, for these classes."""
    backbone, *parts = config.model.rsplit("-", 2)
    if len(parts) == 2:
        config_name = "-".join((backbone, config.neck or parts[0], config.mask_head or parts[1]))
    else:
        config_name = config.model  # from_name says what is wrong with it
    model = ModelConfig.from_name(config_name, class_names=class_names, category_ids=category_ids)
    return replace(model, top_k=config.top_k, preprocess=replace(model.preprocess, size=config.size))


def started_from(model: ModelConfig, source: ModelConfig) -> ModelConfig:
    """The model that takes weights of another one, so that these keep their meaning.

    If backbone and neck are the same, so become what the neck's and the heads' numbers depend on (widths, coding of the
    boxes) and how pictures are prepared (colours, size policy; the size stays). A converted detector differs in all of
    that from a model of ours of the same name.
    """
    if (model.backbone, model.neck) != (source.backbone, source.neck):
        return model
    return replace(
        model,
        neck_channels=source.neck_channels,
        lateral=source.lateral,
        head_channels=source.head_channels,
        offset_head=source.offset_head,
        box_coding=source.box_coding,
        preprocess=replace(source.preprocess, size=model.preprocess.size),
    )
