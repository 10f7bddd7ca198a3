"""Layer dropping under Lightning: the script of a Lightning user, with one callback more.

python examples/lightning_callback.py
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from ldbench import Drop, FixedSchedule
from ldbench.adapters.lightning import LayerDropping


def digits() -> TensorDataset:
    """1,797 real images of written digits, enlarged from 8 x 8 to 24 x 24."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    return TensorDataset(nn.functional.interpolate(x, size=24, mode="bilinear"), torch.from_numpy(labels))


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Sequential(block(1, 16), block(16, 32), nn.MaxPool2d(2)),
            nn.Sequential(block(32, 32), nn.MaxPool2d(2)),
            nn.Sequential(block(32, 64), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(64, 10),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def report(drop: Drop) -> None:
    print(f"step {drop.step}: {drop.cut} stages have left training, {drop.store_bytes / 1e6:.1f} MB are stored")


def main() -> None:
    seed_everything(0)
    train, test = random_split(digits(), [1400, 397])
    dropping = LayerDropping("model", policy=FixedSchedule(((0.4, 1), (0.7, 2))), on_drop=report)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        callbacks=[dropping],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, batch_size=397))
    print(f"accuracy {trainer.callback_metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main()
