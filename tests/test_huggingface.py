"""The name of our backend in Accelerate; models without logits."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

import fxapprox
from fxapprox.huggingface import register_backend, without_logits
from fxapprox.measure.memory import stored_bytes
from fxapprox.torch_adapter import saved_tensors

VOCABULARY = 512


@pytest.fixture(autouse=True)
def _put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamoBackend, "_missing_", DynamoBackend._missing_)
    monkeypatch.setattr(DynamoBackend, "FXAPPROX", None, raising=False)


def test_accelerate_knows_no_backend_that_is_not_its_own() -> None:
    """If it did, register_backend would not be needed."""
    with pytest.raises(ValueError, match="'FXAPPROX' is not a valid DynamoBackend"):
        TorchDynamoPlugin(backend="fxapprox")  # type: ignore[arg-type]


def test_the_backend_is_one_of_accelerates() -> None:
    register_backend()
    register_backend()
    plugin = TorchDynamoPlugin(backend="fxapprox")  # type: ignore[arg-type]
    assert plugin.to_kwargs()["backend"] == "fxapprox"
    assert plugin.backend not in (DynamoBackend.NO, DynamoBackend.INDUCTOR)
    assert copy.deepcopy(plugin).backend == plugin.backend
    assert DynamoBackend("FXAPPROX") is DynamoBackend("FXAPPROX")
    with pytest.raises(ValueError, match="not a valid DynamoBackend"):
        DynamoBackend("FXAPPRO")


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, **sizes))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=32, **sizes))


def batch(rows: int = 16) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    tokens = torch.randint(VOCABULARY, (rows, 32))
    return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_training_forward_returns_the_loss_alone(build: Any) -> None:
    model, given = build().train(), batch()
    expected = model(**given)
    columns = inspect.signature(model.forward)
    assert without_logits(model) is model
    assert inspect.signature(model.forward) == columns
    found = model(**given)
    assert type(found) is type(expected)
    assert list(found.keys()) == ["loss"]
    assert torch.equal(found.loss, expected.loss)
    assert model(**given, return_dict=False)[0].shape == ()
    assert model(given["input_ids"]).logits.shape == (16, 32, VOCABULARY)
    assert model.eval()(**given).logits is not None
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other.lm_head.weight.zero_()
    assert other(**given).loss != found.loss, "a copy has its own weights"


@pytest.mark.parametrize("build", [gpt2, llama])
def test_compiled_with_and_without_logits(build: Any) -> None:
    """The same loss, the same gradients; the caller keeps the loss alone either way."""
    found = []
    for change in (lambda model: model, without_logits):
        torch._dynamo.reset()
        model, given = change(build().train()), batch()
        model.compile(backend="fxapprox", options={"bits": None, "lowering": "eager"})
        loss = model(**given).loss
        held = stored_bytes(loss, exclude=[*model.parameters(), *model.buffers(), *given.values()])
        assert held == sum(report.saved_bytes for report in fxapprox.reports(model))
        if change is without_logits:
            assert len(fxapprox.reports(model)) == 1, "the loss is in the graph"
            assert max(tensor.numel() for tensor in saved_tensors(loss)) < 16 * 32 * VOCABULARY, "no logits"
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("build", [gpt2, llama])
def test_the_trainer_learns_and_evaluates(build: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model = without_logits(build())
    model.compile(backend="fxapprox", options={"bits": 8, "lowering": "eager"})
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(32).expand(16, 32)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, learning_rate=1e-2, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, per_device_train_batch_size=8,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert trainer.predict(rows).predictions.shape[:2] == (16, 32)
    assert fxapprox.reports(model)[0].ratio > 2
