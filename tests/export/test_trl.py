"""TRL's trainer takes an exported model as it is, where TRL is installed (it is in no extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from newllm.export.hf import export_hf
from newllm.export.hf_import import import_hf
from newllm.trained import TrainedModel


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"assistant_only_loss": True}, {"packing": True}])
def test_it_learns_and_comes_back(
    trained: TrainedModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    trl: Any = pytest.importorskip("trl")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "exported"
    export_hf(trained, folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=True)
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), trust_remote_code=True)
    question, answer = {"role": "user", "content": "3?"}, {"role": "assistant", "content": "Four."}
    settings = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), max_steps=40, per_device_train_batch_size=4,
        learning_rate=0.02, report_to=[], use_cpu=True, bf16=False,
        logging_steps=1, save_strategy="no", max_length=64, **options,
    )  # fmt: skip
    rows = Dataset.from_list([{"messages": [question, answer]}] * 64)
    trainer = trl.SFTTrainer(
        model=model, args=settings, train_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    import_hf(tmp_path / "tuned", tmp_path / "back.pt")
    back = TrainedModel.load(tmp_path / "back.pt", "cpu")
    from newllm.inference.sampling import Sampling

    assert back.chat(Sampling(temperature=0)).say("3?", 20) == "Four."
