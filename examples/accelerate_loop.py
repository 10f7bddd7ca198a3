"""Layer dropping in a loop with accelerate: mixed precision, accumulated gradients, checkpoints. No adapter is needed.

    python examples/accelerate_loop.py

What differs from the same loop without: minibatches come from the dropper, which is not prepared; ``dropper(x)`` takes the
place of ``model(x)`` in training; ``dropper.step()`` follows every step of the optimizer. On several devices it cannot be
used: ``prepare`` wraps the model then, and ``LayerDropper`` says so.
"""

from __future__ import annotations

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ldbench import FixedSchedule, LayerDropper

EPOCHS, BATCH, ACCUMULATE = 6, 35, 2  # 40 minibatches an epoch: a whole number of steps


def digits() -> tuple[Tensor, Tensor]:
    """1,797 real images of written digits, enlarged from 8 x 8 to 24 x 24, in [0, 1], shuffled; their labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    order = torch.randperm(len(x))
    return nn.functional.interpolate(x, size=24, mode="bilinear")[order], torch.from_numpy(labels)[order]


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def main() -> None:
    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATE)
    images, labels = (part.to(accelerator.device) for part in digits())
    model = nn.Sequential(
        nn.Sequential(block(1, 16), block(16, 32), nn.MaxPool2d(2)),
        nn.Sequential(block(32, 32), nn.MaxPool2d(2)),
        nn.Sequential(block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, EPOCHS * 40 // ACCUMULATE)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)

    dropper = LayerDropper(
        model,
        optimizer,
        (images[:1400], labels[:1400]),
        batch_size=BATCH,
        epochs=EPOCHS,
        policy=FixedSchedule(((0.4, 1), (0.7, 2))),
        autocast=accelerator.autocast,
    )
    accelerator.register_for_checkpointing(dropper)
    with dropper, tempfile.TemporaryDirectory() as folder:
        for _ in range(EPOCHS):
            model.train()
            for x, y, _ in dropper:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(dropper(x).float(), y)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:  # the optimizer made its step
                    drop = dropper.step()
                    if drop is not None:
                        size = drop.store_bytes / 1e6
                        print(f"step {drop.step}: {drop.cut} stages have left training, {size:.1f} MB are stored")
            accelerator.save_state(folder)  # load_state goes on from there, with the same drops

    model.eval()
    with torch.no_grad():
        accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
