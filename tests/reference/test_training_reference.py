"""Fifty steps beside PEFT, from PEFT's own start, and the adapter they end in, judged by PEFT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import cases
import peft
import reference_adapters
import reference_runs
import reference_texts
import torch
import transformers
from jax.sharding import Mesh
from reference_adapters import Choice
from reference_models import CALM_STD, TinyModel
from reference_runs import Record

from jaxft import tree as trees
from jaxft.config import TrainConfig
from jaxft.data.rows.tokenized import IGNORED
from jaxft.lora import starts
from jaxft.training import optimizer, step
from jaxft.training import state as states
from jaxft.training.objective import CAUSAL_LM

pytestmark = [pytest.mark.reference, *reference_adapters.IGNORED_WARNINGS]

TOLERANCE = 1e-3  # nats a token, at every step
NUM_STEPS = 50
CONFIG = TrainConfig(
    output_dir=Path("unused"),
    learning_rate=1e-3,
    lr_scheduler_type="linear",
    max_steps=NUM_STEPS,
    max_grad_norm=1.0,
    weight_decay=0.0,
)
LENGTHS = (31, 21, 27, 17)

Rows = tuple[reference_texts.Text, np.ndarray]  # and their shifted labels


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run: the base, the targets, and what may not matter: micro-batches and remat."""

    case: str
    chosen: Choice
    accumulation: int
    remat: bool


SETTINGS = {
    "plain": Setting("llama-tied", {}, accumulation=1, remat=False),
    "split": Setting(
        "mistral-window", {"target_modules": "all-linear"}, accumulation=2, remat=True
    ),
    "opt": Setting(
        "opt", {"bias": "all", "modules_to_save": ["lm_head"]}, accumulation=1, remat=False
    ),
    "pissa": Setting(
        "llama",
        {"target_modules": "all-linear", "init_lora_weights": "pissa"},
        accumulation=1,
        remat=True,
    ),
    "dora": Setting("llama-tied", {"use_dora": True}, accumulation=2, remat=False),
    "lfm2": Setting(
        "lfm2",
        {"target_modules": ["in_proj", "out_proj", "w1", "v_proj"]},
        accumulation=2,
        remat=True,
    ),
    "gpt2": Setting("gpt2", {"target_modules": ["c_attn", "c_proj"]}, accumulation=2, remat=True),
}


def rows_of(seed: int) -> Rows:
    text = reference_texts.draw(LENGTHS, "right", vocab_size=cases.VOCAB_SIZE, seed=seed)
    shares = np.random.default_rng(seed).random(len(LENGTHS))
    return text, reference_texts.ragged_labels(text, shares, seed)


TRAINING = [rows_of(seed) for seed in range(NUM_STEPS)]
HELD_OUT = [rows_of(seed) for seed in range(1000, 1004)]


class Run:
    """One setting trained on both sides from the same start on the same rows."""

    def __init__(self, setting: Setting, model: TinyModel, mesh: Mesh, folder: Path) -> None:
        torch.manual_seed(0)
        theirs = reference_adapters.peft_on(model, setting.chosen, seed=None)
        theirs.save_pretrained(folder / "start")
        self.model, self.setting, self.mesh, self.folder = model, setting, mesh, folder
        if "init_lora_weights" in setting.chosen:
            self.start = reference_adapters.begun(model, setting.chosen, theirs, mesh)
        else:
            self.start = reference_adapters.read(model, folder / "start", mesh)
        self.their_losses, self.their_norms = train_with_peft(theirs)
        self.losses, self.norms, self.trained = self._train()

    def program(self, accumulation: int) -> step.Program:
        most = max(
            int(
                (reference_texts.batch_of(*rows, accumulation)["labels"] != IGNORED)
                .sum((1, 2))
                .max()
            )
            for rows in TRAINING + HELD_OUT
        )
        return step.Program(
            self.start.network,
            self.mesh,
            "float32",
            capacity=most,
            remat=self.setting.remat,
            objective=CAUSAL_LM,
        )

    def _train(self) -> tuple[list[float], list[float], trees.Tree]:
        hyper, make = optimizer.hyper_of(CONFIG, NUM_STEPS), optimizer.make_optimizer
        adapters, frozen = self.start.adapters, self.start.frozen
        program = self.program(self.setting.accumulation)
        advance = step.make_train_step(program, make, hyper, adapters)
        state, seen = states.init_state(adapters, {}, hyper, make, self.mesh), []
        for rows in TRAINING:
            batch = reference_texts.batch_of(*rows, self.setting.accumulation)
            state, metrics = advance(state, frozen, batch, np.uint32(0))
            seen.append((float(metrics.loss), float(metrics.grad_norm)))
        losses, norms = zip(*seen, strict=True)
        return list(losses), list(norms), state.trainable

    def held_out_loss(self, adapters: trees.Tree) -> float:
        """Return our mean loss in nats over the held-out rows."""
        evaluate = step.make_eval_step(self.program(1))
        parts = [
            evaluate(adapters, self.start.frozen, reference_texts.batch_of(*rows, 1))["loss"]
            for rows in HELD_OUT
        ]
        return sum(float(loss) for loss, _ in parts) / sum(int(count) for _, count in parts)


def train_with_peft(adapted: peft.PeftModel) -> tuple[list[float], list[float]]:
    """Train as transformers' Trainer does: clip, step, schedule. Returns losses and norms."""
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=CONFIG.learning_rate, weight_decay=0.0)
    schedule = transformers.get_scheduler("linear", adamw, 0, NUM_STEPS)
    losses, norms = [], []
    for text, labels in TRAINING:
        total = reference_runs.torch_loss_sum(adapted, text, labels)
        loss = total / int((labels != IGNORED).sum())
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CONFIG.max_grad_norm)))
        adamw.step()
        schedule.step()
        adamw.zero_grad()
        losses.append(loss.item())
    return losses, norms


def held_out_loss_of(model: torch.nn.Module) -> float:
    """Return torch's mean loss in nats over the held-out rows."""
    with torch.no_grad():
        sums = [reference_runs.torch_loss_sum(model, *rows).item() for rows in HELD_OUT]
    return sum(sums) / sum(int((labels != IGNORED).sum()) for _, labels in HELD_OUT)


@pytest.fixture(scope="module", params=SETTINGS)
def run(
    request: pytest.FixtureRequest,
    tiny_model: Callable[..., TinyModel],
    tmp_path_factory: pytest.TempPathFactory,
    one_device: Mesh,
) -> Run:
    setting = SETTINGS[request.param]
    model = tiny_model(setting.case, std=CALM_STD)
    return Run(setting, model, one_device, tmp_path_factory.mktemp(request.param))


def test_the_loss_equals_that_of_peft_at_every_step(run: Run, record_property: Record) -> None:
    distance = np.abs(np.array(run.losses) - np.array(run.their_losses)).max()
    record_property("difference", distance)
    assert distance < TOLERANCE


def test_the_gradient_norm_before_clipping_equals_that_of_peft(
    run: Run, record_property: Record
) -> None:
    record_property("range", (min(run.norms), max(run.norms)))
    ratio = np.array(run.norms) / np.array(run.their_norms)
    record_property("difference", np.abs(ratio - 1).max())
    assert np.abs(ratio - 1).max() < TOLERANCE
    assert max(run.norms) > CONFIG.max_grad_norm


def test_the_exported_adapter_has_the_held_out_loss_in_peft_that_we_print(
    run: Run, record_property: Record
) -> None:
    model, folder = run.model, run.folder / "trained"
    tree = trees.combine(run.trained, starts.of(run.start.frozen))
    reference_adapters.export(model, run.setting.chosen, run.start.network, tree, folder)
    ours = run.held_out_loss(run.trained)
    theirs = held_out_loss_of(reference_adapters.peft_from(model, folder))
    record_property("difference", abs(ours - theirs))
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    before = held_out_loss_of(model.torch_model)
    record_property("losses", (before, ours))
    assert run.held_out_loss(run.start.adapters) == pytest.approx(before, abs=1e-5)
    assert theirs < before - 50 * TOLERANCE
