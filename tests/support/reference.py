"""The plain Trainer, stepping along the gradient that the paper's equations give.

Loop, clipping, optimizer, schedule and checkpoints are transformers' own. The gradient is computed
here, without the package: autograd on the bare model, flat vectors, averages over ranks by hand.
"""

import copy
from collections.abc import Callable
from typing import Any

import oracles
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer

Batch = dict[str, Any]
State = list[tuple[dict[str, Any], dict[str, Tensor]]]  # each module's buffers and copies
COUNTED = ("_metrics", "_total_train_tokens")  # by trl, and once a micro-batch
AnyTrainer: Any = object  # what the mixin is mixed into


class ReferenceMixin(AnyTrainer):
    """`sam` holds scope, rho, p, adaptive and eta; `share` of rho by step, `perturb` by name.

    `kept` are the examples of a micro-batch in the clean pass, None for all; `sigma` is LE-SAM's.
    Or a `rule` from `oracles` for the gradient of the effective batch.
    """

    def __init__(self, *args: Any, sam: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        defaults = {"scope": "micro_batch", "rho": 0.05, "p": 2.0, "adaptive": False, "eta": 0.01}
        self.sam = {**defaults, "share": lambda step: 1.0, "perturb": lambda name: True, **sam}
        self.sam.setdefault("kept", None)
        self.group: list[tuple[Batch, Any, Tensor, State, Tensor]] = []
        self.kept: dict[str, Any] = {}  # by a rule
        self.steps_of_window = 0

    def _prepare_for_training(self, *args: Any) -> Any:
        self.found: dict[str, list[Tensor]] = {"clean": [], "perturbed": [], "norm": []}
        self.ascents: set[int] = set()  # the steps with one since the last log entry
        return super()._prepare_for_training(*args)

    @property
    def rho(self) -> float:
        return self.sam["rho"] * self.sam["share"](self.state.global_step)

    def floating_point_ops(self, inputs: Batch) -> int:
        if "rule" in self.sam:
            return self.sam["passes"](self.state.global_step) * super().floating_point_ops(inputs)
        share = 1.0 if self.sam["kept"] is None else self.sam["kept"] / len(inputs["labels"])
        return int((1 + (self.rho > 0) * share) * super().floating_point_ops(inputs))

    def get_batch_samples(self, *args: Any) -> Any:
        self.group, self.steps_of_window = [], 0
        return super().get_batch_samples(*args)

    def training_step(
        self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None
    ) -> Tensor:
        model.train()
        if hasattr(self.optimizer, "train"):  # schedule-free optimizers
            self.optimizer.train()
        bare = self.accelerator.unwrap_model(model)
        params = [p for p in bare.parameters() if p.requires_grad]
        self.of_model = len(params)
        params += list(self.head.parameters()) if hasattr(self, "head") else []
        if self.steps_of_window == 0:
            self.buffers_before = self.state_of(bare)
            if self.args.ddp_broadcast_buffers is not False:
                on_ranks(lambda buffer: dist.broadcast(buffer, src=0), list(bare.buffers()))
        self.steps_of_window += 1
        try:
            step = self._rule_step if "rule" in self.sam else self._sam_step
            loss = step(bare, params, inputs, num_items_in_batch)
        except BaseException:
            restore(self.buffers_before)
            raise
        return loss

    def _sam_step(
        self, bare: nn.Module, params: list[nn.Parameter], inputs: Batch, items: Any
    ) -> Tensor:
        draws, kept = torch.get_rng_state(), self.sam["kept"] if self.rho > 0 else None
        buffers = self.state_of(bare)
        loss, pieces = self._gradients(bare, params, *self._first(kept, inputs, items))
        if kept is not None:
            restore(buffers)
        last = self.steps_of_window == self.current_gradient_accumulation_steps
        if self.rho == 0:
            add(pieces, params)
            if last:
                average_gradients(params[: self.of_model])
            return loss
        if kept is None:  # or the two losses are not of the same examples
            self.ascents.add(self.state.global_step)
        self.found["clean"].append(loss)
        self.group.append((inputs, items, draws, buffers, flatten(pieces, params)))
        if last or self.sam["scope"] == "micro_batch":
            w, buffers = flatten(params, params), self.state_of(bare)
            after = torch.get_rng_state()
            counted = {n: copy.deepcopy(vars(self)[n]) for n in COUNTED if n in vars(self)}
            try:
                self._add_sam_gradients(bare, params, w)
            finally:
                vars(self).update(counted)
                write(params, w)
                if kept is None:  # or the second pass counts, and draws for itself
                    restore(buffers)
                    torch.set_rng_state(after)
            self.group = []
        if last:
            average_gradients(params[: self.of_model])
        return loss

    def _first(self, kept: int | None, inputs: Batch, items: Any) -> tuple[Batch, Any]:
        """The first examples, and the count of labels that gives them the weight of all."""
        if kept is None:
            return inputs, items
        first = {name: rows[:kept] for name, rows in inputs.items()}
        if items is not None:
            items = items * self._labels(first) / self._labels(inputs)
        return first, items

    def _labels(self, inputs: Batch) -> int:
        labels = inputs["labels"]
        return int(((labels[:, 1:] if self._loss_shifts_labels else labels) != -100).sum())

    def _rule_step(
        self, bare: nn.Module, params: list[nn.Parameter], inputs: Batch, items: Any
    ) -> Tensor:
        """Wait for the window's last micro-batch, and return the losses of its first passes."""
        if self.steps_of_window == 1:
            self.draws = torch.get_rng_state()
        self.group.append((inputs, items, torch.empty(0), [], torch.empty(0)))
        if self.steps_of_window < self.current_gradient_accumulation_steps:
            return torch.zeros(())
        w, scaler = flatten(params, params), self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        passes: list[tuple[Tensor, Tensor]] = []  # loss over the window, its gradient
        after: list[Any] = []
        begun: list[State] = []  # before each micro-batch of the first passes

        def at(v: Tensor) -> Tensor:
            write(params, v)
            torch.set_rng_state(self.draws)
            found = []
            for i, (batch, n, *_) in enumerate(self.group):
                if after:
                    restore(begun[i])
                begun.append(self.state_of(bare))
                found.append(self._gradients(bare, params, batch, n))
            g = torch.stack([flatten(pieces, params) for _, pieces in found]).sum(0) / scale
            on_ranks(dist.all_reduce, [g])
            passes.append((torch.stack([loss for loss, _ in found]).sum(), g / ranks))
            if not after:
                after.extend([torch.get_rng_state(), self.state_of(bare)])
            return passes[-1][1]

        ranks = self.accelerator.num_processes
        kept = self._momentum(params) if self.sam["rule"] is oracles.msam else self.kept
        g = self.sam["rule"](at, w, kept, rho=self.sam["rho"])
        write(params, w)
        restore(after[1])
        torch.set_rng_state(after[0])
        if len(passes) == 2:
            self.ascents.add(self.state.global_step)
            for name, value in (("clean", passes[0][0]), ("perturbed", passes[1][0])):
                self.found[name].append(value)
            self.found["norm"].append(passes[0][1].norm())
        for p, piece in zip(params, g.split([p.numel() for p in params]), strict=True):
            left = 0.0 if p.grad is None else p.grad  # by an unfinished window
            p.grad = scale * piece.view_as(p) + left
        self.group = []
        return passes[0][0]

    def _momentum(self, params: list[nn.Parameter]) -> dict[str, Tensor]:
        states = [self.optimizer.state.get(p, {}) for p in params]
        buffers = [state.get("momentum_buffer", state.get("exp_avg")) for state in states]
        return {} if buffers[0] is None else {"v": flatten(buffers, params)}

    def state_of(self, bare: nn.Module) -> State:
        """Copies of all buffers, each module's beside its own dictionary of them."""
        modules = [*bare.modules(), *(self.head.modules() if hasattr(self, "head") else ())]
        return [
            (m._buffers, {n: b.clone() for n, b in m._buffers.items() if b is not None})
            for m in modules
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add to a training entry what the two passes found, averaged over ranks."""
        if "loss" in logs and start_time is not None and self.ascents:
            sums = {name: torch.stack(values).sum() for name, values in self.found.items()}
            on_ranks(dist.all_reduce, list(sums.values()))
            ranks = self.accelerator.num_processes
            steps = ranks * len(self.ascents)
            logs["perturbed_loss"] = float(sums["perturbed"] / steps)
            logs["sharpness"] = float((sums["perturbed"] - sums["clean"]) / steps)
            logs["ascent_grad_norm"] = float(sums["norm"] / (ranks * len(self.found["norm"])))
            self.found, self.ascents = {name: [] for name in self.found}, set()
        super().log(logs, start_time)

    def _gradients(
        self, bare: nn.Module, params: list[nn.Parameter], inputs: Batch, items: Any
    ) -> tuple[Tensor, list[Tensor | None]]:
        loss = self.compute_loss(bare, self._prepare_inputs(dict(inputs)), num_items_in_batch=items)
        if self.compute_loss_func is None and (items is None or not self.model_accepts_loss_kwargs):
            loss = loss / self.current_gradient_accumulation_steps
        scaler = self.accelerator.scaler
        scaled = loss if scaler is None else scaler.scale(loss)
        pieces = torch.autograd.grad(scaled, params, allow_unused=True)
        return loss.detach(), [g.to_dense() if g is not None else None for g in pieces]

    def _add_sam_gradients(self, bare: nn.Module, params: list[nn.Parameter], w: Tensor) -> None:
        """Add to `p.grad` the gradients of the group's micro-batches at w + their epsilon."""
        g = torch.stack([g for *_, g in self.group]).sum(0) / self._weight_in_window()
        g = g * beside(oracles.name_mask(bare, self.sam["perturb"]), g)
        if self.sam["scope"] == "global":
            on_ranks(dist.all_reduce, [g])
            g = g / self.accelerator.num_processes
        scaler = self.accelerator.scaler
        norm = g.norm() / (1.0 if scaler is None else scaler.get_scale())
        self.found["norm"].append(norm)
        epsilon = torch.zeros_like(w)
        if g.any():
            scale = torch.where(self._scaled(bare), w.abs() + self.sam["eta"], 1.0)
            rho = min(self.sam.get("sigma", float("inf")) / float(norm), self.rho)
            epsilon = oracles.perturbation(g, rho=rho, p=self.sam["p"], scale=scale)
        write(params, w + epsilon)
        for inputs, items, draws, buffers, _ in self.group:
            if self.sam["kept"] is None:
                torch.set_rng_state(draws)
                restore(buffers)
            loss, pieces = self._gradients(bare, params, inputs, items)
            self.found["perturbed"].append(loss)
            add(pieces, params)

    def _weight_in_window(self) -> float:
        """What the group's mean loss was multiplied by, for the window's sum to be its mean."""
        items = self.group[0][1]
        if items is None or self.sam["scope"] == "global":
            return len(self.group) / self.current_gradient_accumulation_steps
        own = sum(self._labels(batch) for batch, *_ in self.group)
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return own * ranks / float(items)

    def _scaled(self, bare: nn.Module) -> Tensor:
        mask = oracles.weight_mask(bare)
        if hasattr(self, "head"):
            mask = torch.cat([mask, oracles.weight_mask(self.head)])
        return mask if self.sam["adaptive"] else torch.zeros_like(mask)


class ReferenceTrainer(ReferenceMixin, Trainer):
    pass


def add(pieces: list[Tensor | None], params: list[nn.Parameter]) -> None:
    for p, piece in zip(params, pieces, strict=True):
        if piece is not None:
            p.grad = piece if p.grad is None else p.grad + piece


def on_ranks(collective: Callable[[Tensor], Any], tensors: list[Tensor]) -> None:
    if dist.is_initialized():
        for tensor in tensors:
            collective(tensor)


def average_gradients(params: list[nn.Parameter]) -> None:
    """Average over ranks; a parameter that no rank has used keeps no gradient."""
    if not dist.is_initialized():
        return
    for p in params:
        used = torch.tensor(float(p.grad is not None))
        total = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        on_ranks(dist.all_reduce, [used, total])
        p.grad = total / dist.get_world_size() if used else None


def flatten(pieces: list[Tensor | None], params: list[nn.Parameter]) -> Tensor:
    pairs = zip(pieces, params, strict=True)
    return torch.cat([(p * 0 if g is None else g).detach().flatten() for g, p in pairs])


def write(params: list[nn.Parameter], w: Tensor) -> None:
    with torch.no_grad():
        for p, piece in zip(params, w.split([p.numel() for p in params]), strict=True):
            p.copy_(piece.view_as(p))


def beside(mask: Tensor, g: Tensor) -> Tensor:
    """A mask of the model's parameters, and 1 for those beside it."""
    return torch.cat([mask.to(g.dtype), torch.ones(len(g) - len(mask), dtype=g.dtype)])


def restore(state: State) -> None:
    for own, before in state:
        own.update({name: buffer.clone() for name, buffer in before.items()})
