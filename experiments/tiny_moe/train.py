"""Training, seeded and resumable: every step draws its batch from the seed and its own number."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from experiments.tiny_moe.corpus import Corpus
from experiments.tiny_moe.model import Config, TinyMoe, balancing_loss
from moesim.errors import MoesimError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, a linear warm-up, then half a cosine down to a tenth.

    Attributes:
        steps, batch: steps, and sequences of each.
        rate: the largest learning rate.
        balance: weight of the load-balancing loss.
        save_every: steps between checkpoints, at each of which the held-out loss is measured.
    """

    steps: int = 1500
    batch: int = 24
    rate: float = 2e-3
    warm_up: int = 100
    decay: float = 0.1
    balance: float = 0.01
    seed: int = 0
    save_every: int = 100

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.55 + 0.45 * math.cos(math.pi * done))


def train(corpus: Corpus, config: Config, recipe: Recipe, folder: Path) -> TinyMoe:
    """Train, or go on from the checkpoint in ``folder``; write the loss curve and the weights there.

    Raises:
        MoesimError: the checkpoint is of another model, recipe or text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model = TinyMoe(config)
    matrices = [each for each in model.parameters() if each.dim() > 1]
    others = [each for each in model.parameters() if each.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    about: dict[str, object] = {"config": asdict(config), "recipe": asdict(recipe), "corpus": corpus.digest}
    checkpoint = folder / "checkpoint.pt"
    step, curve = 0, list[dict[str, float]]()
    if checkpoint.exists():
        step, curve = _resume(checkpoint, about, model, optimizer)
    started = time.monotonic() - (curve[-1]["seconds"] if curve else 0.0)
    while step < recipe.steps:
        loss = _step(model, optimizer, corpus, recipe, step)
        step += 1
        if step % recipe.save_every == 0 or step == recipe.steps:
            held = {f"{domain}_loss": value for domain, value in held_out_loss(model, corpus).items()}
            point = {"step": step, "train_loss": loss, **held, "seconds": time.monotonic() - started}
            curve.append({name: round(value, 5) for name, value in point.items()})
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "about": about,
                    "step": step,
                    "curve": curve,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
                part,
            )
            part.replace(checkpoint)
            print(json.dumps(curve[-1]), flush=True)
    (folder / "curve.json").write_text(json.dumps({**about, "curve": curve}, indent=1) + "\n")
    save_model(model, folder / "weights.safetensors")
    return model


def _resume(
    checkpoint: Path, about: dict[str, object], model: TinyMoe, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    saved = torch.load(checkpoint, weights_only=True)
    for part, value in about.items():
        if saved["about"][part] != value:
            raise MoesimError(f"is of another {part}: train into another folder", file=checkpoint)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["curve"]


def _step(
    model: TinyMoe, optimizer: torch.optim.Optimizer, corpus: Corpus, recipe: Recipe, step: int
) -> float:
    """One update; returns the cross entropy in nats a byte."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate_at(step)
    rng = np.random.default_rng([recipe.seed, step])
    bytes_BC = _draw(corpus, recipe.batch, model.config.context + 1, rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BCV = model(bytes_BC[:, :-1])
    loss = _cross_entropy(logits_BCV, bytes_BC[:, 1:])
    whole = loss + recipe.balance * balancing_loss(model.routings) if model.routings else loss
    whole.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _draw(corpus: Corpus, batch: int, length: int, rng: np.random.Generator) -> Tensor:
    """Sequences from random places, half of them from each domain."""
    rows = [
        text[start : start + length]
        for text in corpus.train.values()
        for start in rng.integers(len(text) - length, size=batch // len(corpus.train))
    ]
    return torch.from_numpy(np.array(rows, np.int64))


def held_out_bytes(corpus: Corpus, length: int, sequences: int = 64) -> dict[str, Tensor]:
    """Passages that were never trained on, evenly spread over the files: by domain, int64 [B, length]."""
    found = {}
    for domain, text in corpus.held_out.items():
        starts = np.linspace(0, len(text) - length, sequences).astype(int)
        found[domain] = torch.from_numpy(np.array([text[at : at + length] for at in starts], np.int64))
    return found


@torch.no_grad()
def loss_of(model: TinyMoe, bytes_BC: Tensor) -> float:
    """Cross entropy of the bytes after the first, in nats a byte."""
    model.eval()
    return float(_cross_entropy(model(bytes_BC[:, :-1]), bytes_BC[:, 1:]))


def held_out_loss(model: TinyMoe, corpus: Corpus) -> dict[str, float]:
    """Cross entropy in nats a byte on text that was never trained on, by domain."""
    passages = held_out_bytes(corpus, model.config.context + 1)
    return {domain: loss_of(model, bytes_BC) for domain, bytes_BC in passages.items()}


def _cross_entropy(logits_BCV: Tensor, next_BC: Tensor) -> Tensor:
    return functional.cross_entropy(logits_BCV.float().flatten(0, 1), next_BC.flatten())


def save_model(model: TinyMoe, file: Path) -> None:
    """Write the weights in half precision, with the shape of the model."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, file, metadata={name: str(size) for name, size in asdict(model.config).items()})


def load_model(file: Path) -> TinyMoe:
    """The model that :func:`save_model` wrote, in single precision.

    Raises:
        MoesimError: the file cannot be read, or is of another model.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            config = Config(**{name: int(size) for name, size in (opened.metadata() or {}).items()})
        model = TinyMoe(config)
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    except OSError as error:
        raise MoesimError(f"cannot be read: {error.strerror or error}", file=file) from error
    except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
        raise MoesimError("holds no model that the command train has written", file=file) from error
    return model.eval()
