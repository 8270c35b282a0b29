"""A plan: time, memory, disk and cost of a training, by counts of work and speeds of parts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from newllm.config import Settings
from newllm.device import cpu_model, pick_device
from newllm.errors import UserError
from newllm.planning.speed import (
    DEVICES,
    HERE,
    UTILISATION,
    Speed,
    assumed_speed,
    measured_speed,
    parse_device,
)
from newllm.planning.work import Share, Work, share_of, work_of
from newllm.results.records import size_text
from newllm.train.memory import preset_rows

PROCESS_BYTES = 0.6e9
"""What a process takes besides: Python, torch, compiled kernels."""

USABLE = 0.9
"""Of a device's memory."""


@dataclass(frozen=True)
class Machine:
    """Where the training will run."""

    title: str
    count: int
    memory: float
    """Bytes of each device."""
    speed: Speed
    link: float | None
    """Bytes/s between devices."""
    price: float | None
    """Dollars an hour and device; None: unknown."""
    assumed: float | None
    """Share of the peaks; None: measured."""


@dataclass(frozen=True)
class Step:
    """Seconds of a training step, by what takes them."""

    products: float
    between: float
    """Everything between the products."""
    update: float
    """The optimizer."""
    exchange: float
    """Gradients between devices, not overlapped with the rest."""

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.products + self.between + self.update + self.exchange


@dataclass(frozen=True)
class Plan:
    """What is expected of a training."""

    settings: Settings
    work: Work
    machine: Machine
    tokens: int
    batch_tokens: int
    step: Step
    rows_at_once: int
    """Rows that each device computes at once; 0: not even one fits."""
    memory_bytes: float
    """Of each device."""
    share: Share | None
    """Of each device, where they share one model."""

    @property
    def hours(self) -> float:
        """Hours of training."""
        return self.tokens / self.batch_tokens * self.step.seconds / 3600

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second, over all devices."""
        return self.batch_tokens / self.step.seconds

    @property
    def disk_bytes(self) -> float:
        """Checkpoints (the best, the last, two to resume from) and rows of two bytes a token."""
        return 4 * self.work.parameters + 3 * self.work.state_bytes + 2 * self.tokens

    @property
    def cost(self) -> float | None:
        """Dollars."""
        price = self.machine.price
        return None if price is None else price * self.machine.count * self.hours

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        shape = (
            "num_layers", "context_dim", "embed_dim", "hidden_dim", "vocab_size", "pair_rows",
            "recall_slots", "counts",
        )  # fmt: skip
        return {
            **self.settings.model_dump(include=set(shape)),
            **asdict(self.work),
            "device": self.machine.title,
            "devices": self.machine.count,
            "utilisation": self.machine.assumed,
            "tokens": self.tokens,
            "batch_tokens": self.batch_tokens,
            "step_seconds": asdict(self.step),
            "tokens_per_second": self.tokens_per_second,
            "hours": self.hours,
            "rows_at_once": self.rows_at_once,
            "memory_bytes": self.memory_bytes,
            "device_memory_bytes": self.machine.memory,
            "state_bytes": self.work.state_bytes,
            "share": None if self.share is None else asdict(self.share),
            "disk_bytes": self.disk_bytes,
            "dollars": self.cost,
        }


def machine_of(
    device: str,
    settings: Settings,
    utilisation: float | None = None,
    price: float | None = None,
) -> Machine:
    """The machine that `--device` names; `here` is measured for some seconds, by these settings.

    `utilisation` is a fraction of its peaks (default: `UTILISATION`), which `here` has none of;
    `price` is in dollars an hour and device.

    Raises:
        UserError: unknown device, or a fraction of what is measured.
    """
    name, count = parse_device(device)
    if name == HERE:
        if utilisation is not None:
            raise UserError("--utilisation: --device here is measured; omit it")
        here = pick_device("auto")
        gpu = torch.cuda.get_device_properties(here) if here.type == "cuda" else None
        title = gpu.name if gpu else f"{cpu_model()}, {torch.get_num_threads()} thread(s)"
        memory = gpu.total_memory if gpu else psutil.virtual_memory().total
        return Machine(title, 1, memory, measured_speed(settings), None, price, None)
    known, fraction = DEVICES[name], UTILISATION if utilisation is None else utilisation
    return Machine(
        title=known.title,
        count=count,
        memory=known.memory,
        speed=assumed_speed(known, fraction),
        link=known.link,
        price=known.price if price is None else price,
        assumed=fraction,
    )


def make_plan(
    settings: Settings,
    tokens: int,
    machine: Machine,
    batch_tokens: int | None = None,
    shard: bool = False,
) -> Plan:
    """Expect a training of so many tokens in all.

    Args:
        settings: of the model, and a batch.
        tokens: of the whole training.
        machine: where it runs.
        batch_tokens: of a step, over all devices (default: of the settings' batch, as in training,
            whose batch is that of all processes together).
        shard: whether each device has a part of every weight (`newllm train --shard`).

    Raises:
        UserError: a single device, or a batch, that cannot be shared.
    """
    row_tokens, count = settings.max_seq_length, machine.count
    batch = batch_tokens or settings.batch_size * row_tokens
    on_cpu = machine.assumed is None and pick_device("auto").type == "cpu"
    work, each = work_of(settings, batch if on_cpu else None), batch / count
    static, share = work.static_bytes + PROCESS_BYTES, None
    if shard:
        share = _share(settings, machine, batch)
        static = share.state_bytes + share.step_bytes + PROCESS_BYTES
    elif count > 1:
        static += 4 * work.parameters  # the buckets are a second copy of the gradients
    row = row_tokens * work.kept_per_token
    fitting = max(0, int((USABLE * machine.memory - static) / row))
    rows_each = max(1, round(each / row_tokens))
    rows = min(fitting, rows_each)
    if machine.assumed is None:
        rows = min(rows, preset_rows(pick_device("auto"), row_tokens))
    exchange = 0.0
    if count > 1:
        assert machine.link is not None
        sent = 2 * 4 * work.parameters  # in a ring each gradient crosses twice
        if share is not None:
            sent = share.sent_once + math.ceil(rows_each / max(1, rows)) * share.sent_each
        exchange = (count - 1) / count * sent / machine.link
    step = Step(
        products=each * work.flops_per_token / machine.speed.products,
        between=each * work.kept_per_token / machine.speed.traffic,
        update=work.update_flops / (count if shard else 1) / machine.speed.update,
        exchange=exchange,
    )
    memory = static + max(1, rows) * row
    return Plan(settings, work, machine, tokens, batch, step, rows, memory, share)


def _share(settings: Settings, machine: Machine, batch_tokens: int) -> Share:
    if machine.count == 1:
        raise UserError("--shard: one device shares with none; give several, as in --device l4x2")
    if batch_tokens % (settings.max_seq_length * machine.count):
        raise UserError(
            f"--shard: a step of {batch_tokens:,} tokens is no multiple of {machine.count} rows of "
            f"{settings.max_seq_length}; give another --batch-tokens or --device"
        )
    return share_of(settings, machine.count)


def plan_table(plan: Plan) -> str:
    """The plan as text."""
    s, work, machine, step = plan.settings, plan.work, plan.machine, plan.step
    sent = "weights and gradients" if plan.share else "gradients"
    batch_size = max(1, round(plan.batch_tokens / s.max_seq_length))
    lines: Mapping[str, str] = {
        "Model": f"{size_text(work.parameters, s.counts, before=True)}: {s.num_layers} layers, "
        f"context {s.context_dim}, stream {s.embed_dim}, feed-forward {s.hidden_dim}, "
        f"vocabulary {s.vocab_size:,}",
        "Train": f"newllm train DATASET --num-layers {s.num_layers} --context-dim {s.context_dim} "
        f"--vocab-size {s.vocab_size} --batch-size {batch_size}" + " --shard" * bool(plan.share),
        "Work": f"{plan.tokens:,} tokens ({plan.tokens / work.parameters:.3g} a parameter) x "
        f"{_unit(work.flops_per_token, 'FLOP')} = "
        f"{_unit(plan.tokens * work.flops_per_token, 'FLOP')} of matrix products",
        "Device": _device_line(machine),
        "A step": f"{plan.batch_tokens:,} tokens in {step.seconds:.3g} s: products "
        f"{step.products:.2g}, between them {step.between:.2g}, optimizer {step.update:.2g}"
        + (f", exchange of {sent} {step.exchange:.2g}" if machine.count > 1 else ""),
        "Time": f"{_duration(plan.hours)}, {plan.tokens_per_second:,.0f} tokens/s",
        "Memory": _memory_line(plan),
        **_share_lines(plan),
        "Disk": f"{_unit(plan.disk_bytes, 'B')}: checkpoints, and every token once as a row",
    }
    if plan.cost is not None:
        lines = {**lines, "Cost": f"${plan.cost:,.2f} at ${machine.price:.2f} an hour and device"}
    return "\n".join(f"{name:<8}{text}" for name, text in lines.items())


def _share_lines(plan: Plan) -> Mapping[str, str]:
    if plan.share is None:
        return {}
    part, whole = plan.share.state_bytes, plan.work.state_bytes
    return {
        "Shared": f"{_unit(part, 'B')} of {_unit(whole, 'B')} of weights and optimizer state in "
        f"each of {plan.machine.count} processes ({part / whole:.0%}); while a step runs "
        f"{_unit(plan.share.step_bytes, 'B')} more, counted, not measured"
    }


def _device_line(machine: Machine) -> str:
    products = _unit(machine.speed.products, "FLOP/s")
    if machine.assumed is None:
        return f"{machine.title}: {products} in products, measured now"
    return (
        f"{machine.count} x {machine.title}: {products} each in products; {machine.assumed:.0%} of "
        "its peak, assumed, not measured"
    )


def _memory_line(plan: Plan) -> str:
    held, there = _unit(plan.memory_bytes, "B"), _unit(plan.machine.memory, "B")
    if plan.rows_at_once:
        rows = f"{plan.rows_at_once} rows of {plan.settings.max_seq_length} tokens at once"
        return f"{held} of {there} a device, {rows}"
    way = "more or larger devices" if plan.share else "a larger device, or several with --shard"
    return (
        f"DOES NOT FIT: {held} of {there} a device with a single row; take a smaller model or {way}"
    )


def _unit(value: float, unit: str) -> str:
    """`1.9 GFLOP`."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    power = 0
    while value >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}"


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} seconds"
    if hours < 2:
        return f"{60 * hours:.0f} minutes"
    return f"{hours:.1f} hours" if hours < 72 else f"{hours / 24:.1f} days"
