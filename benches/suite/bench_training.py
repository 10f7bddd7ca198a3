"""The training step with none, half and all but one of the stages dropped, cache building, splitting, FLOPs."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable

import torch

from ldbench.meters import NullEnergyMeter, energy_meter, measure

from . import common
from .places import building_seconds, count_stage_flops, split_stages, synchronize

timeout = 300


class TrainingStep:
    """Seconds of one step by the share of stages dropped."""

    params = (common.MODELS, ["none", "half", "all but one"], [common.machine_key()])
    param_names = ("model", "dropped", "device")
    unit = "seconds"
    version = "2"

    def setup(self, model: str, dropped: str, device: str) -> None:
        self.engine = common.dropper(model)
        last = len(self.engine.stages) - 1
        cut = {"none": 0, "half": last // 2, "all but one": last}[dropped]
        if cut:
            self.engine._drop(cut, "benchmark", 0.0, "device")

    def teardown(self, model: str, dropped: str, device: str) -> None:
        self.engine.close()

    def track_step_seconds(self, model: str, dropped: str, device: str) -> dict[str, object]:
        return common.samples(lambda: common.train_step(self.engine))

    def track_step_over_plain_loop(self, model: str, dropped: str, device: str) -> dict[str, object]:
        def pair() -> tuple[Callable[[], None], Callable[[], None]]:
            self.teardown(model, dropped, device)
            self.setup(model, dropped, device)
            return lambda: common.train_step(self.engine), common.plain_step(model, self.engine.cut)

        return common.ratio_samples(pair)

    track_step_over_plain_loop.unit = "of a plain step"  # type: ignore[attr-defined]
    track_step_over_plain_loop.version = "3"  # type: ignore[attr-defined]


class TrainingEnergy:
    """Joules of a GPU for 1,000 samples of training; without a meter there is nothing to run."""

    params = (common.MODELS, ["none", "half"], [common.machine_key()])
    param_names = ("model", "dropped", "device")
    unit = "joules"
    version = "1"

    def setup(self, model: str, dropped: str, device: str) -> None:
        if not torch.cuda.is_available() or isinstance(energy_meter(common.device()), NullEnergyMeter):
            raise NotImplementedError("no GPU whose energy can be read")
        self.engine = common.dropper(model)
        if dropped == "half":
            self.engine._drop((len(self.engine.stages) - 1) // 2, "benchmark", 0.0, "device")

    def track_joules_per_1000_samples(self, model: str, dropped: str, device: str) -> dict[str, object]:
        joules = []
        for _ in range(3):
            with measure("cuda:0") as block:
                count, began = 0, time.perf_counter()
                while time.perf_counter() - began < 6.0:  # a shorter window has no figure
                    common.train_step(self.engine)
                    count += common.BATCH
            if block.energy_joules is None:
                raise RuntimeError(block.energy_unavailable_reason)
            joules.append(1000 * block.energy_joules / count)
        return {"samples": joules, "number": 1}


class StoreReads:
    """A minibatch of stored views, one of four of each image, over one of single ones, from a store of as many rows."""

    params = (common.MODELS, [common.machine_key()])
    param_names = ("model", "device")
    unit = "of a read of single views"
    version = "1"

    def setup(self, model: str, device: str) -> None:
        try:
            common.reads(model, 4, common.BATCH)
        except TypeError as error:
            raise NotImplementedError("no views yet") from error

    def track_four_views_over_one(self, model: str, device: str) -> dict[str, object]:
        return common.ratio_samples(lambda: (common.reads(model, 4), common.reads(model, 1, 4 * 1024)))


class CacheBuilding:
    """Seconds to drop the first half of the stages, statistics and store included."""

    params = (common.MODELS, [common.machine_key()])
    param_names = ("model", "device")
    unit = "seconds"
    version = "1"

    def track_build_seconds(self, model: str, device: str) -> dict[str, object]:
        seconds = []
        for _ in range(4):
            engine = common.dropper(model)
            engine._drop(len(engine.stages) // 2, "benchmark", 0.0, "device")
            synchronize(engine.device)
            seconds.append(building_seconds(engine))
            engine.close()
        return {"samples": seconds[1:], "number": 1}  # the first one warms up


class Stages:
    """Splitting, and the FLOPs of one sample: exact, a change of one is a regression."""

    params = (["vgg11_bn", "resnet18", "resnet50"],)
    param_names = ("model",)
    unit = "FLOPs per sample"
    version = "1"

    def setup(self, model: str) -> None:
        self.network = common.network(model)

    def time_split(self, model: str) -> None:
        split_stages(self.network)

    def track_forward_flops(self, model: str) -> int:
        stages = split_stages(copy.deepcopy(self.network))
        return sum(stage.forward for stage in count_stage_flops(stages, (1, common.SIDE, common.SIDE)))


class PeakMemory:
    """Peak memory of two training steps: on the device, or of the whole process without one."""

    params = (common.MODELS, [common.machine_key()])
    param_names = ("model", "device")
    unit = "bytes"
    version = "1"

    def track_peak_bytes(self, model: str, device: str) -> int:
        engine = common.dropper(model)
        if engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(2):
            common.train_step(engine)
        engine.close()
        if engine.device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
