"""`newllm plan`: its counts against real models, and what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from newllm.cli import main
from newllm.cli.options import Count
from newllm.model import build_model
from newllm.planning import plan, speed
from newllm.planning.plan import Machine, make_plan, plan_table
from newllm.planning.speed import DEVICES, Speed, parse_device
from newllm.planning.work import share_of, softmax_entries, work_of
from newllm.settings import resolve
from newllm.train.optimizers import make_optimizers, orthogonalize

SMALL = {"num_layers": 2, "context_dim": 64, "vocab_size": 512}


@pytest.mark.parametrize("tokenizer", ["bpe", "word1000"])
def test_products_are_counted(tokenizer: str) -> None:
    for slots in (0, 64):
        settings = resolve("dolly", {**SMALL, "tokenizer": tokenizer, "recall_slots": slots})
        model = build_model(settings.model_settings(), 512)
        ids = torch.randint(512, (2, 32))
        with FlopCounterMode(display=False) as counter:
            hidden, _ = model(ids, model.initial_state(2), None)
            model.loss(hidden, ids).backward()
        counted = work_of(settings).flops_per_token * 64
        # Recall projects each candidate once, however often it is found: at most as counted.
        assert counted * (0.9 if slots else 1) <= counter.get_total_flops() <= counted


def test_muons_products_are_counted() -> None:
    settings = resolve("dolly", SMALL)
    model = build_model(settings.model_settings(), 512)
    with FlopCounterMode(display=False) as counter:
        for matrix, pieces in model.matrices():  # type: ignore[union-attr]
            orthogonalize(torch.stack(matrix.detach().chunk(pieces)), torch.float32)
    assert work_of(settings).update_flops == counter.get_total_flops()


def test_moments_are_counted() -> None:
    settings = resolve("dolly", SMALL)
    model = build_model(settings.model_settings(), 512)
    optimizers = make_optimizers(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "step"
    )
    assert work_of(settings).moment_bytes == held


def machine(count: int = 1, memory: float = 1e12) -> Machine:
    return Machine("T", count, memory, Speed(1e12, 1e11, 1e12), 1e10, 2.0, 0.4)


def test_twice_the_devices_do_the_same_step_in_half_the_time_but_for_what_each_does() -> None:
    settings = resolve("dolly", {}, params=10**7)
    one, two = (make_plan(settings, 10**9, machine(n), 2**16) for n in (1, 2))
    assert two.step.products == pytest.approx(one.step.products / 2)
    assert two.step.between == pytest.approx(one.step.between / 2)
    assert (two.step.update, one.step.exchange) == (one.step.update, 0.0)
    assert two.step.exchange == pytest.approx(4 * one.work.parameters / 1e10)
    assert one.hours == pytest.approx(10**9 / 2**16 * one.step.seconds / 3600)
    assert two.cost == pytest.approx(2 * 2.0 * two.hours)


def test_memory_limits_the_rows_at_once() -> None:
    settings = resolve("dolly", {}, params=10**7)
    plenty = make_plan(settings, 10**9, machine(), 2**16)
    assert plenty.rows_at_once == 2**16 // settings.max_seq_length
    tight = make_plan(settings, 10**9, machine(memory=3e9), 2**16)
    assert 0 < tight.rows_at_once < plenty.rows_at_once
    assert tight.memory_bytes <= 0.9 * 3e9
    none = make_plan(settings, 10**9, machine(memory=5e8), 2**16)
    assert none.rows_at_once == 0
    assert "DOES NOT FIT" in plan_table(none)


def test_a_share_is_what_two_processes_were_found_to_hold() -> None:
    """`newllm bench shard --params 40000000`: 163.2 of 326.4 MB (docs/BENCHMARKS.md)."""
    settings = resolve("dolly", {"counts": 0}, params=40_000_000)
    settings = settings.model_copy(update={"vocab_size": 2113})  # of the built-in rows
    work = work_of(settings)
    assert work.parameters == 38_813_824
    assert work.state_bytes == pytest.approx(326.4e6, abs=5e4)
    assert share_of(settings, 2).state_bytes == pytest.approx(163.2e6, abs=5e4)
    assert share_of(settings, 1).state_bytes == work.state_bytes
    three = share_of(settings, 3)  # of some matrices the first process has a row more
    assert work.state_bytes < 3 * three.state_bytes < 1.01 * work.state_bytes
    assert three.step_bytes < share_of(settings, 2).step_bytes


def test_devices_that_share_a_model() -> None:
    settings = resolve("dolly", {}, params=10**7)
    whole, shared = (
        make_plan(settings, 10**9, machine(2), 2**16, shard=shard) for shard in (False, True)
    )
    assert shared.share is not None
    assert shared.memory_bytes < whole.memory_bytes
    assert shared.step.exchange > whole.step.exchange
    assert shared.step.update == whole.step.update / 2
    text = plan_table(shared)
    assert "(50%)" in text
    assert "--shard" in text
    assert "Shared" not in plan_table(whole)
    assert shared.facts()["share"]["state_bytes"] == shared.share.state_bytes
    # More micro-batches gather the weights more often.
    tight = make_plan(settings, 10**9, machine(2, memory=2e9), 2**16, shard=True)
    assert tight.rows_at_once < shared.rows_at_once
    assert tight.step.exchange > shared.step.exchange
    assert "DOES NOT FIT" in plan_table(
        make_plan(settings, 10**9, machine(2, memory=5e8), 2**16, shard=True)
    )


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--params", "350M", "--tokens", "10B", "--device", "L4x8"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "8 x L4" in text
    assert "assumed, not measured" in text
    assert "parameters and up to 8.0 MB of counts: " in text
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["devices"] == 8
    assert facts["parameters"] <= 350_000_000
    assert facts["dollars"] == pytest.approx(8 * 0.8 * facts["hours"])
    taken = resolve("ultrachat", {})
    assert facts["batch_tokens"] == taken.batch_size * taken.max_seq_length  # of all devices
    assert f"--batch-size {taken.batch_size}" in text
    assert main([*words, "--price", "0", "--utilisation", "0.8", "--json"]) == 0
    faster = json.loads(capsys.readouterr().out)
    assert faster["dollars"] == 0
    assert faster["step_seconds"]["products"] == pytest.approx(
        facts["step_seconds"]["products"] / 2
    )


def test_this_machine_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "REFERENCE", SMALL)
    monkeypatch.setattr(speed, "_LARGEST", 1_000_000)
    monkeypatch.setattr(speed, "_TIMED_TOKENS", 256)
    assert main(["plan", "--params", "1.4m", "--tokens", "1e6"]) == 2
    assert main(["plan", "--params", "1.4m", "--tokens", "1M"]) == 0
    assert "measured now" in capsys.readouterr().out
    monkeypatch.setattr(plan, "measured_speed", lambda settings: Speed(1e11, 1e9, 1e11))
    assert main(["plan", "--params", "1.4m", "--tokens", "1M", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["dollars"] is None
    assert facts["step_seconds"]["products"] == pytest.approx(
        4096 * facts["flops_per_token"] / 1e11
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"--device": "l5"}, "--device l5: expected here, or one of t4, l4"),
        ({"--device": "herex2"}, "expected here"),
        ({"--device": "l4x0"}, "--device l4x0"),
        ({"--params": "many"}, "many: expected a number such as 350M"),
        ({"--params": "0"}, "0: expected a number"),
        ({"--params": "90k"}, "no model of 1 layer(s) with a vocabulary of 4,096 is so small"),
        ({"--params": "900T"}, "the largest model of at most 64 layer(s) has"),
        ({"--utilisation": "2"}, "--utilisation"),
        ({"--shard": ""}, "--shard: one device shares with none"),
        ({"--shard": "", "--device": "l4x3"}, "4,096 tokens is no multiple of 3 rows of 128"),
    ],
)
def test_what_cannot_be_planned(
    changed: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"--params": "35M", "--tokens": "1B", "--device": "l4", **changed}
    assert main(["plan", *(word for pair in words.items() for word in pair if word)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("350M", 350_000_000), ("1.4m", 1_400_000), ("10B", 10**10), ("2T", 2 * 10**12), ("7", 7)],
)
def test_numbers_as_people_write_them(text: str, number: int) -> None:
    converted: Any = Count().convert(text, None, None)
    assert converted == number


def test_devices() -> None:
    assert parse_device("A100-80GBx4") == ("a100-80gb", 4)
    assert parse_device("a100") == ("a100", 1)
    assert parse_device("here") == ("here", 1)
    for device in DEVICES.values():
        assert device.flops > 1e13
        assert 1e10 < device.memory < 1e12


def test_a_step_on_a_cpu_sums_its_softmax_over_a_sample() -> None:
    settings = resolve("dolly", {"vocab_size": 4096})
    assert softmax_entries(settings, 4096) == 1226 + 256
    whole, sampled = work_of(settings), work_of(settings, 4096)
    left_out = 4096 - 1226 - 256
    assert whole.flops_per_token - sampled.flops_per_token == 6 * left_out * settings.embed_dim
    assert softmax_entries(settings.model_copy(update={"sampled_softmax": 0}), 4096) == 4096
    assert softmax_entries(settings, 10**6) == 4096  # nearly all are targets
