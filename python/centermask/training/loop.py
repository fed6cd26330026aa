"""The training loop: Lightning Fabric for devices, precision and processes; everything else is plain to read here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from centermask.nn.model import CenterMask
from centermask.training import processes
from centermask.training.augment import TrainTransform
from centermask.training.average import WeightAverage
from centermask.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    remove_unfinished,
    rows_by_class,
    save_checkpoint,
    slim_checkpoint,
)
from centermask.training.data import CocoDataset, free_memory, load_datasets, repeat_factors, require_objects
from centermask.training.guard import explanation
from centermask.training.loader import TrainBatch, make_loader
from centermask.training.mixing import MixOptions
from centermask.training.objective import LossTask, Objective, default_model_config, started_from
from centermask.training.optimizer import freeze_backbone, learning_rate_factor, parameter_groups, resumed_state
from centermask.training.progress import BestSoFar, Clock, bar_seconds, figures_in_words
from centermask.training.settings import TrainConfig
from centermask.training.val_split import load_val, must_be_made

logger = logging.getLogger(__name__)

Evaluate = Callable[[CenterMask, CocoDataset], dict[str, Any]]


class Trainer:
    """One run.

    Args:
        config: Its settings.
        evaluate: Gives AP of a model on a data set; None for no evaluation.

    Raises:
        ValueError: Data or settings do not fit.
        FileNotFoundError: `resume` or `init_from` name no file.
    """

    def __init__(self, config: TrainConfig, evaluate: Evaluate | None = None) -> None:
        self.config = config
        self.evaluate = evaluate
        self.out = Path(config.out)
        if not config.resume and (self.out / "last.pt").exists():
            raise ValueError(
                f"train: {self.out} holds a run already: go on with it (--resume), or choose another --out"
            )
        self.fabric = processes.make_fabric(config)
        if self.fabric.is_global_zero:
            remove_unfinished(self.out)
        torch.manual_seed(config.seed)

        classes = config.classes or None
        # Crops magnify a picture by at most 1 / scale[0]: more pixels than that are never seen.
        max_side = math.ceil(max(config.sizes()) / config.scale[0])
        folders = [Path(p) for p in config.data]
        split = config.val_split if evaluate is not None else ""
        make_val = must_be_made(folders, split)
        self.data = load_datasets(
            folders,
            "train",
            classes=classes,
            cache=free_memory() // (2 * processes.on_this_machine()) if config.cache else 0,
            max_side=max_side,
            make_val=make_val,
        )
        require_objects(self.data)
        self.held_out = list(self.data.sources) if make_val else []
        if config.cache:
            self.data.fill_cache()
        self.val = load_val(folders, split, self.data, all_classes=not classes, make_val=make_val) if split else None
        model_config = default_model_config(config, tuple(self.data.class_names), tuple(self.data.category_ids))
        if config.init_from or config.resume:
            start = self.out / "last.pt" if config.resume else Path(config.init_from)
            model_config = started_from(model_config, load_checkpoint(start).config)
        fresh = not (config.init_from or config.resume)
        self.model = CenterMask(model_config, pretrained=config.pretrained and fresh)
        if config.init_from and not config.resume:
            self._init_from(Path(config.init_from))
        self.frozen = freeze_backbone(self.model, config.freeze_stages)
        self.frozen += processes.prepare_batch_norm(self.model, config.batch_norm, self.fabric.device)
        rate = config.learning_rate * config.batch_size / 16
        self.objective = Objective(self.model, config)
        on_gpu = self.fabric.device.type == "cuda"
        if on_gpu:
            # What cuDNN's tensor-core kernels and ours read without a copy.
            self.objective.to(memory_format=torch.channels_last)
        # One kernel for all weights, where a step would launch hundreds; Fabric's fp16 scaler cannot clip with it.
        fused = on_gpu and config.precision != "fp16"
        optimizer = torch.optim.AdamW(parameter_groups(self.objective, config, rate), lr=rate, fused=fused or None)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        if config.compile:
            self.objective.compile_dense()
        self.wrapped, self.optimizer = self.fabric.setup(self.objective, optimizer)
        self.average = WeightAverage(self.model, config.ema) if config.ema > 0 else None
        mixes = config.mosaic > 0 or config.copy_paste > 0
        self.loader, self.sampler = make_loader(
            self.data,
            TrainTransform(config.size, scale=config.scale, aspect=config.aspect, rotation=config.rotation),
            batch_size=config.batch_size // (self.fabric.world_size * config.accumulate),
            batches_a_step=config.accumulate,
            sizes=config.sizes(),
            seed=config.seed,
            workers=config.workers,
            mixing=MixOptions(config.mosaic, copy_paste=config.copy_paste) if mixes else None,
            factors=self._factors(),
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            pin_memory=self.fabric.device.type == "cuda",
        )
        self.steps_per_epoch = len(self.loader) // config.accumulate
        self.total_steps = self.steps_per_epoch * config.epochs
        self.generator = torch.Generator(self.fabric.device)
        self.step = 0
        self.best = BestSoFar("mask_ap" if self.model.mask_params is not None else "box_ap")
        self.clock = Clock(0)
        self.saved_at = time.monotonic()
        self.interrupted = False
        # What all processes have agreed on in the last step: whether to end, and the seconds since the last save.
        self.ending, self.unsaved = False, 0.0
        if config.resume:
            self._resume()

    # ---- setting up ----

    def _factors(self) -> Any:
        factors = repeat_factors(self.data, self.config.repeat_threshold)
        if self.config.data_weights:
            # By number: two folders may have the same name.
            factors = factors * np.array(self.config.data_weights)[[r.source for r in self.data.records]]
        return factors

    def _init_from(self, path: Path) -> None:
        checkpoint = load_checkpoint(path)
        self._forget_learned(checkpoint.info)
        target = self.model.state_dict()
        source = rows_by_class(checkpoint, self.model.config.class_names, target)
        fitting = {k: v.to(target[k].dtype) for k, v in source.items() if k in target and v.shape == target[k].shape}
        if not fitting:
            raise ValueError(f"{path}: no weight fits {self.model.config.name}")
        self.model.load_state_dict(fitting, strict=False)
        left = sorted({k.split(".")[0] for k in target if k not in fitting})
        logger.info("%s: %d of %d tensors taken; new in %s", path, len(fitting), len(target), left or "nothing")

    def _forget_learned(self, info: Mapping[str, Any]) -> None:
        """What a run before this one learned from a data set without holding out is not held out."""
        learned = set(info.get("data", ())) - set(info.get("held_out", ()))
        self.held_out = [name for name in self.held_out if name not in learned]

    # ---- state ----

    def _deployed(self) -> CenterMask:
        return self.average.module if self.average is not None else self.model  # type: ignore[return-value]

    def _checkpoint(self, info: Mapping[str, Any]) -> Checkpoint:
        weights = {k: v.detach().cpu().clone() for k, v in self._deployed().state_dict().items()}
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        training = {
            "step": self.step,
            "best": self.best.state(),
            "weights": self.model.state_dict(),
            "auxiliary": self.objective.semantic.state_dict() if self.objective.semantic is not None else {},
            "averaged": self.average.count if self.average is not None else 0,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.config).items()},
        }
        return Checkpoint(self.model.config, weights, training, dict(info))

    def save(self, *, must: bool = True) -> None:
        """Writes OUT/last.pt, from which `resume` goes on; without `must` a full disk is told and does not end the run.

        Raises:
            OSError: It cannot be written. The file that was there before still is.
        """
        if self.fabric.is_global_zero:
            try:
                save_checkpoint(self.out / "last.pt", self._checkpoint(self._info()))
            except OSError as error:
                if must:
                    raise
                logger.error("step %d: %s; the last.pt of before stays, the run goes on", self.step, error)
        self.fabric.barrier()  # torchrun ends all processes when one is gone, also one that still writes
        self.saved_at, self.unsaved = time.monotonic(), 0.0

    def _resume(self) -> None:
        checkpoint = load_checkpoint(self.out / "last.pt")
        state = checkpoint.training
        if not state:
            raise ValueError(f"{self.out / 'last.pt'} holds no state of a run to go on from")
        if checkpoint.config != self.model.config:
            raise ValueError(
                f"{self.out / 'last.pt'} has {checkpoint.config.differences(self.model.config)}: a run goes on as it "
                f"began. For another one take its weights: --init-from {self.out / 'best.pt'} and another --out"
            )
        for name, (before, now) in self.config.differences(state["settings"]).items():
            logger.warning("%s was %s and is now %s: the run goes on, but not as if never stopped", name, before, now)
        self._forget_learned(checkpoint.info)
        pictures = checkpoint.info.get("images", len(self.data))
        if pictures != len(self.data):
            logger.warning("%s training pictures are now %d: the run goes on with others", pictures, len(self.data))
        self.model.load_state_dict(state["weights"])
        if self.objective.semantic is not None and state.get("auxiliary"):
            self.objective.semantic.load_state_dict(state["auxiliary"])
        fresh = self.optimizer.state_dict()
        self.optimizer.load_state_dict(resumed_state(fresh, state["optimizer"], self.objective, state["settings"]))
        if self.average is not None:
            self.average.module.load_state_dict(checkpoint.model)
            self.average.count = state["averaged"]
        scaler = getattr(self.fabric.strategy.precision, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.best.load(state["best"])
        logger.info("going on from step %d of %d", self.step, self.total_steps)

    def _info(self, ap: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return {
            "data": [Path(p).name for p in self.config.data],
            "images": len(self.data),
            "held_out": self.held_out,
            "epochs": self.config.epochs,
            "step": self.step,
            "ap": dict(ap or {}),
        }

    # ---- running ----

    def fit(self) -> dict[str, Any]:
        """Trains to the end; returns the last evaluation.

        Raises:
            KeyboardInterrupt: `interrupted` was set; OUT/last.pt holds the step that was under way then.
        """
        result: dict[str, Any] = {}
        epochs = self.config.epochs
        self.clock = Clock(self.step)
        # A run that was stopped after its last step still has its last evaluation to do.
        first = min(self.step // self.steps_per_epoch, epochs - 1)
        # Whether it had ended before: asked of the first process, whose files they are.
        if self.fabric.broadcast(self.best.exhausted(self.config.patience) and (self.out / "final.pt").exists()):
            logger.info("%s", self.best.farewell(first, epochs))
            return result
        for epoch in range(first, epochs):
            if self.best.exhausted(self.config.patience):
                logger.info("%s", self.best.farewell(epoch, epochs))
                break
            self._epoch(epoch)
            last = epoch + 1 == epochs
            evaluated = self.val is not None and (last or (epoch + 1) % self.config.eval_every == 0)
            if evaluated:
                result = self._evaluate(epoch)
            # Epochs of a small data set take seconds: not each of them is worth a file of 100 MB.
            if last or evaluated or self.unsaved > min(60.0, self.config.save_minutes * 60):
                self.save(must=last)
            if self.ending and not last:
                self.save()
                raise KeyboardInterrupt
        if self.fabric.is_global_zero:
            final = slim_checkpoint(self._checkpoint(self._info(result)))
            save_checkpoint(self.out / "final.pt", final)
            if not self.best.epoch:
                save_checkpoint(self.out / "best.pt", final)
            logger.info("%s", self.best.conclusion(self.out))
        self.fabric.barrier()
        return result

    def _log(self, kind: str, values: Mapping[str, float]) -> None:
        try:
            self.fabric.log_dict({f"{kind}/{k}": v for k, v in values.items()}, self.step)
        except OSError as error:  # a full disk; curves are not worth the run
            logger.error("step %d: cannot write the logs: %s", self.step, error)

    def _train_mode(self) -> None:
        self.wrapped.train()
        for module in self.frozen:
            module.eval()

    def _epoch(self, epoch: int) -> None:
        self._train_mode()
        done = self.step - epoch * self.steps_per_epoch
        if done >= self.steps_per_epoch:
            return
        self.sampler.set_epoch(epoch, done * (self.config.batch_size // self.fabric.world_size))
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=done,
            desc=f"epoch {epoch + 1}/{self.config.epochs}",
            disable=not self.fabric.is_global_zero,
            mininterval=bar_seconds(),
        )
        smooth: dict[str, float] = {}
        with bar:
            for batches in self._steps():
                terms = self.train_step(*batches)
                for name, value in terms.items():
                    smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
                bar.set_postfix({k: f"{v:.3f}" for k, v in smooth.items()}, refresh=False)
                bar.update()
                if self.step % 10 == 0:
                    self._log("train", terms)
                # Not after the epoch's last step: its evaluation would be missed by a run that goes on from there.
                inside = self.step % self.steps_per_epoch != 0
                if inside and self.ending:
                    self.save()
                    raise KeyboardInterrupt
                if inside and self.unsaved > self.config.save_minutes * 60:
                    self.save(must=False)

    def _steps(self) -> Iterator[list[TrainBatch]]:
        """The batches of each step that is left of the epoch, on the device."""
        batches: list[TrainBatch] = []
        for batch in self.loader:
            batches.append(batch.to(self.fabric.device, non_blocking=True))
            if len(batches) == self.config.accumulate:
                yield batches
                batches = []

    def train_step(self, *batches: TrainBatch) -> dict[str, float]:
        """One step of the optimizer on one batch, or on several whose gradients are added up.

        Returns:
            The loss terms, their `total` and the gradient's `norm`, of all processes together.

        Raises:
            FloatingPointError: A loss term or a gradient is not finite; it names the term, the layer and the pictures.
        """
        config, fabric = self.config, self.fabric
        factor = learning_rate_factor(self.step, self.total_steps, config.warmup_steps, config.schedule)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        # A seed for each step and process, so that a resumed run draws the same cells.
        self.generator.manual_seed(hash((config.seed, self.step, fabric.global_rank)) % 2**63)
        amounts = torch.stack([self.objective.amounts(batch) for batch in batches]).sum(dim=0)
        # At least 1 over all processes together: what each of them divides by is its share of that.
        instances, cells = processes.mean_of_all(fabric, amounts).clamp(min=1 / fabric.world_size)
        parts = []
        for number, batch in enumerate(batches, start=1):
            with fabric.no_backward_sync(self.wrapped, enabled=number < len(batches)):
                terms = self.wrapped(LossTask(batch, self.generator, instances, cells))
                fabric.backward(torch.stack(list(terms.values())).sum())
            parts.append((batch, {name: term.detach() for name, term in terms.items()}))
        fabric.strategy.precision.unscale_gradients(self.optimizer)
        gradients = [p.grad for p in self.wrapped.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        told = torch.stack([torch.stack(list(terms.values())) for _, terms in parts]).sum(dim=0)
        # The one place where the CPU waits for a GPU: everything before it has been queued, everything after is short.
        # All processes end or save after the same step, whichever of them was told to, whatever their clocks say.
        mine = [float(self.interrupted), time.monotonic() - self.saved_at]
        *values, norm_value, ending, self.unsaved = processes.agreed(fabric, torch.cat([told, norm[None]]), mine)
        self.ending = ending > 0
        # In fp16 the loss is scaled, and the scaler leaves out a step whose gradients overflow.
        if not all(map(math.isfinite, values)) or not (math.isfinite(norm_value) or config.precision == "fp16"):
            names = {record.image_id: str(record.path) for record in self.data.records}
            with fabric.autocast():
                reason = explanation(self.objective, parts, names, self.step)
            raise FloatingPointError(processes.told_by_all(reason))
        if 0 < config.clip < norm_value:
            torch._foreach_mul_(gradients, config.clip / norm_value)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model)
        self.step += 1
        return {**dict(zip(parts[0][1], values, strict=True)), "total": sum(values), "norm": norm_value}

    def _evaluate(self, epoch: int) -> dict[str, Any]:
        assert self.val is not None
        assert self.evaluate is not None
        self.fabric.barrier()
        result: dict[str, Any] = {}
        if self.fabric.is_global_zero:
            model = self._deployed().eval()
            with torch.no_grad():
                result = self.evaluate(model, self.val)
            shown = {k: v for k, v in result.items() if isinstance(v, float)}
            self._log("val", shown)
            told = figures_in_words(result), self.clock.left(self.step, self.total_steps)
            logger.info("epoch %d of %d: %s", epoch + 1, self.config.epochs, "; ".join(filter(None, told)))
            before = replace(self.best)
            if self.best.judge(result.get(self.best.key), epoch + 1):
                try:
                    save_checkpoint(self.out / "best.pt", slim_checkpoint(self._checkpoint(self._info(result))))
                except OSError as error:  # a full disk: best.pt is still the one of before
                    logger.error("%s", error)
                    self.best = before
        self.best = self.fabric.broadcast(self.best)  # all processes end together; this waits for the first, too
        return result
