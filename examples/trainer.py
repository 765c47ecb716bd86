"""Hugging Face's Trainer: the model is compiled in place, and stays a PreTrainedModel.

Run it: python examples/trainer.py --bits 4
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import fxapprox

VOCABULARY = 64
LENGTH = 32


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count up, from anywhere."""

    def __len__(self) -> int:
        return 2048

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (torch.arange(LENGTH) + index) % VOCABULARY
        return {"input_ids": tokens, "labels": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "eager"))
    given = parser.parse_args()

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=2))
    model.compile(backend="fxapprox", options={"bits": given.bits, "lowering": given.lowering})
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Counting())
        trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    reports = fxapprox.reports(model)
    stored, plain = (sum(getattr(r, name) for r in reports) for name in ("saved_bytes", "baseline_bytes"))
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f}, stored {stored:,} of {plain:,} bytes")


if __name__ == "__main__":
    main()
