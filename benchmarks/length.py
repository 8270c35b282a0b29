"""Loss by position, far beyond the rows a model was trained on: it should stay flat or fall.

    newllm bench length --checkpoint FILE --data FOLDER

Long documents are made of the validation rows: whole documents of one data set, one after the
other, with nothing in between, each beginning with its own <bos>; the state is carried across.
They are as long as 64 training rows. Beside the loss so carried stands the loss of the very same
tokens with the state reset where each document begins: the difference is what a long past costs,
or gives.
"""

from __future__ import annotations

import click
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.measure import Report, Row, report_options
from newllm.errors import UserError
from newllm.trained import TrainedModel

CHUNK = 256
"""Positions read at a time."""


def long_documents(tokens: np.ndarray, length: int) -> np.ndarray:
    """Joined documents cut into texts of `length` positions, [N, length + 1]."""
    texts = (len(tokens) - 1) // length
    return np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(texts)])


@torch.inference_mode()
def nats_by_position(trained: TrainedModel, texts: np.ndarray, bos: int, reset: bool) -> np.ndarray:
    """Nats of every token, [N, T]; NaN where <bos> would have to be predicted."""
    ids = torch.from_numpy(texts.astype(np.int64))
    starts = ids == bos
    state = trained.model.initial_state(len(ids))
    parts = []
    for begin in range(0, ids.shape[1] - 1, CHUNK):
        place = slice(begin, min(begin + CHUNK, ids.shape[1] - 1))
        hidden, state = trained.model(ids[:, place], state, starts[:, place] if reset else None)
        targets = ids[:, place.start + 1 : place.stop + 1]
        logits = trained.model.logits(hidden).float()
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        parts.append(nats.view(targets.shape).masked_fill(targets == bos, torch.nan))
    return torch.cat(parts, dim=1).numpy()


@click.command()
@click.option("--checkpoint", metavar="FILE", required=True, help="The model.")
@click.option("--data", default="sample", show_default=True, help="Rows: sample or PATH.")
@click.option("--times", default=64, show_default=True, help="Length in training rows.")
@report_options
def command(checkpoint: str, data: str, times: int) -> Report:
    trained = TrainedModel.load(checkpoint, "cpu")
    row = trained.settings.max_seq_length
    tokens, _ = trained.validation_rows(data).all_tokens()
    if len(tokens) <= row * times:
        raise UserError(f"{data}: {len(tokens):,} tokens, need {row * times:,}; lower --times")
    texts = long_documents(tokens, row * times)
    carried, reset = (
        nats_by_position(trained, texts, trained.tokenizer.bos, each) for each in (False, True)
    )
    rows: list[Row] = []
    begin = 0
    while begin < row * times:
        end = max(row, 2 * begin)
        ours, alone = (float(np.nanmean(nats[:, begin:end])) for nats in (carried, reset))
        rows.append(
            {
                "positions": f"{begin:,} to {end:,}",
                "nats_a_token": ours,
                "with_resets": alone,
                "ratio": ours / alone,
            }
        )
        begin = end
    facts = {"model": checkpoint, "texts": len(texts), "trained_row": row, "rows": data}
    return Report({"Loss by position": rows}, facts)
