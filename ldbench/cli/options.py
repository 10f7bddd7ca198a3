"""The options that set a field of an experiment: what each means, and what it is parsed as."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from ldbench.data.names import AUGMENTATIONS
from ldbench.experiment.config import CHOICES, Experiment

Command = TypeVar("Command", bound=Callable[..., None])


def _one_of(field: str) -> str:
    *first, last = CHOICES[field]
    return f"{', '.join(first)} or {last}"


# The options of ``run`` in the order of its help.
HELP: dict[str, str] = {
    "model": "Architecture of torchvision, or package.module:factory, whose code is then run.",
    "dataset": "digits, mnist, fashion-mnist, cifar10, imagenette, folder:PATH, NAME=folder:PATH (records hold NAME "
    "alone) or synthetic:CxHxW:CLASSES:N; mnist[5-9] for some classes.",
    "scenario": "scratch, fine-tune (from the weights of --init or --pretrain-dataset), online (data in chunks) or "
    "online-fine-tune.",
    "method": "full, short, learn-and-drop, freeze, paced, schedule; freezeout, freezeout-linear, autofreeze, egeria, apf, "
    "linear-freezing, simfreeze, each also as NAME+store; stochastic-depth, progressive-depth, resize; infobatch; every rule "
    "that drops also as NAME+infobatch.",
    "seeds": "How many seeds (0, 1, ...), or the seeds themselves: 3,5,7 (one alone: 7,).",
    "tune": "Values of the recipe to try for each method, such as lr=0.025,0.05,0.1; its cells take what does best on "
    "the validation images.",
    "tune_seeds": "How many seeds (1000, 1001, ...) to try them with, or the seeds themselves; 2 by default.",
    "epochs": "Epochs of full training.",
    "batch_size": "Samples per minibatch.",
    "optimizer": f"{_one_of('optimizer')}.",
    "lr": "Base learning rate.",
    "weight_decay": "Weight decay.",
    "schedule": f"{_one_of('schedule')}.",
    "augment": f"{', '.join(AUGMENTATIONS)}, or package.module:factory of a transform of your own, alone or behind flip+crop+.",
    "device": "auto, cpu, cuda or cuda:N.",
    "precision": f"{_one_of('precision')}.",
    "channels_last": "Memory format of activations.",
    "compile": "Compile the live stages with torch.compile.",
    "threads": "CPU threads of torch.",
    "train_size": "Training images, a subset balanced over the classes.",
    "test_size": "Test images.",
    "val_size": "Validation images cut from the training images.",
    "image_size": "Side of the images in pixels.",
    "width": "Channel multiplier of VGG and ResNet.",
    "dropout": "Dropout probability of the head.",
    "eval_every": "Epochs between evaluations, or last.",
    "short_budgets": "Shares of full training for method short: 0.25,0.5,0.75.",
    "save_model": f"{_one_of('save_model')}.",
    "data_root": "Folder of the data sets.",
    "download": "Fetch a data set that is missing.",
    "cache_dtype": f"Activation store: {_one_of('cache_dtype')}.",
    "cache_budget": "Store size allowed on device[,host[,disk]], such as 4GiB,16GiB.",
    "cache_views": "Augmented views of each sample that a store holds; a step reads one of them. 1 by default: the image "
    "as it is.",
    "refresh_views": "Share of these views that is made anew in every epoch.",
    "change_features": "Random changes of stored maps, KIND=STRENGTH, such as mirror=0.5: mirror, shift, cutout.",
    "check_every": "Steps between two checks of the scores.",
    "cost_table": "Results folder of an earlier run (or one table in its costs folder) whose cost tables to decide by.",
    "checkpoint_minutes": "Minutes between checkpoints; by default 5, or more where writing one takes over 1 % of the "
    "time.",
    "init": "Weights to fine-tune: a .safetensors file, or torchvision for the published ones.",
    "pretrain_dataset": "Data set to make the weights to fine-tune on, once per model and seed: one for all, or one for "
    "each --dataset in their order.",
    "pretrain_epochs": "Epochs of that; as many as of training by default.",
    "pretrain_size": "Images of that.",
    "chunks": "Chunks in which the data of scenario online arrive; 5 by default.",
    "memory": "Images of earlier chunks that are remembered; as many as a chunk holds by default.",
    "stream": f"Order of arrival: {_one_of('stream')}.",
    "freeze_to": "Freeze the stages in front of this one from the beginning: its name, or how many.",
    "decide_by": f"What the cuts that pay are chosen by, {_one_of('decide_by')}: counted, so that drops are the same on every "
    "machine, or of a measured cost table.",
    "refresh_statistics": "Re-estimate BatchNorm's statistics of stages that leave, in forward passes of their own; the "
    "same for every rule.",
    "stream_schedule": "What the learning rate's schedule spans: the whole stream, or each chunk anew (chunk).",
}
# The options of ``profile`` beside model and data set: they are as in ``run``, but for what it has no use for.
_PROFILED = (
    "batch_size", "width", "image_size", "train_size", "device", "precision", "threads", "data_root", "download",
    "augment", "cache_dtype", "cache_budget", "cache_views",
)  # fmt: skip
PROFILE_HELP = {name: HELP[name] for name in _PROFILED} | {
    "train_size": "Training images.",
    "cache_budget": "Store size allowed on device[,host[,disk]].",
    "cache_views": "Views of each sample that a store holds.",
}


def parsed_as(hint: Any) -> Any:
    """What the command line takes for a field of this type; a list of numbers, or one of two types, is read as text,
    a table as words.
    """
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
    if tuple[str, ...] in (hint, *kinds) or typing.get_origin(hint) is dict:
        return list[str] | None
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is tuple:
        return str | None
    return str | None if len(kinds) > 1 else hint | None


def field_options(texts: Mapping[str, str]) -> Callable[[Command], Command]:
    """Spells out a command's ``**fields`` for Typer, which reads its signature: an option per field named in ``texts``.

    They stand between the command's ordinary parameters and its keyword-only ones, and are None unless given.
    """
    hints = typing.get_type_hints(Experiment)
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(None, help=text),
            annotation=parsed_as(hints[name]),
        )
        for name, text in texts.items()
    ]

    def spell_out(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters.values()
        first = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
        last = [p for p in own if p.kind is p.KEYWORD_ONLY]
        vars(command)["__signature__"] = inspect.Signature([*first, *fields, *last])
        return command

    return spell_out
