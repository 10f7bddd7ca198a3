"""Layer dropping under the Trainer of transformers: another class for the trainer, and two arguments more.

python examples/transformers_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import TimmWrapperConfig, TimmWrapperForImageClassification, TrainingArguments, set_seed

from ldbench import Drop, FixedSchedule
from ldbench.adapters.transformers import DroppingTrainer


class Digits(Dataset[Any]):
    """1,797 real images of written digits, enlarged from 8 x 8 to 32 x 32."""

    def __init__(self) -> None:
        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
        self.images, self.labels = nn.functional.interpolate(x, size=32, mode="bilinear"), labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": int(self.labels[index])}


def report(drop: Drop) -> None:
    print(f"step {drop.step}: {drop.cut} stages have left training, {drop.store_bytes / 1e6:.1f} MB are stored")


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


def main() -> None:
    set_seed(0)
    order = torch.randperm(1797).tolist()
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=10, model_args={"in_chans": 1})
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=6,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=397,
            learning_rate=3e-3,
            save_strategy="epoch",
            save_total_limit=1,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = DroppingTrainer(
            TimmWrapperForImageClassification(config),
            args,
            train_dataset=Subset(Digits(), order[:1400]),
            eval_dataset=Subset(Digits(), order[1400:]),
            compute_metrics=accuracy,
            network="timm_model",
            dropping={"policy": FixedSchedule(((0.4, 3), (0.7, 5)), cheapest=True), "on_drop": report},
        )
        trainer.train()
        print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
