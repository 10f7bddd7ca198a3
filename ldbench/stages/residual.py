"""Residual blocks among the stages, and leaving them out at random: the branch is skipped, the shortcut stays.

Which blocks a step leaves out is a pure function of seed, step and stage, so a resumed run leaves out the same ones.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from ldbench.errors import UserError
from ldbench.seeds import derive_seed, random_words
from ldbench.stages.flops import StageFlops, count_stage_flops
from ldbench.stages.side_effects import node_name
from ldbench.stages.tracing import attribute, augmented_assignment

_SUMS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Block:
    """A residual stage in its two random forms; both share the stage's modules.

    Attributes:
        shortcut: the stage without its branch.
        scaled: takes (x, scale): the stage with its branch multiplied by ``scale``.
    """

    shortcut: fx.GraphModule
    scaled: fx.GraphModule


def residual_block(stage: fx.GraphModule) -> Block | None:
    """The random forms of a stage whose last sum adds a branch to a shortcut with fewer parameters; None for others."""
    found = _find_sum(stage)
    return None if found is None else Block(_without_branch(stage, *found), _with_scale(stage, *found))


def _find_sum(stage: fx.GraphModule) -> tuple[fx.Node, int] | None:
    """The last sum of two values that both come from the stage's input, and which of its operands is the branch."""
    source = next(node for node in stage.graph.nodes if node.op == "placeholder")
    for node in reversed(stage.graph.nodes):
        operands = _operands(node)
        if operands is None:
            continue
        before = [_ancestors(operand) for operand in operands]
        if not all(source in nodes for nodes in before):
            continue
        sizes = [_learnable(nodes, stage) for nodes in before]
        if sizes[0] != sizes[1]:
            return node, int(sizes[1] > sizes[0])
    return None


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Both summands where the node is a plain sum of two values."""
    arguments = list(node.args)
    if node.target is augmented_assignment:
        if arguments[1] != "iadd":
            return None
        del arguments[1]
    elif not (node.target in _SUMS or (node.op == "call_method" and node_name(node) in ("add", "add_"))):
        return None
    if len(arguments) != 2 or node.kwargs or not all(isinstance(argument, fx.Node) for argument in arguments):
        return None
    return cast(fx.Node, arguments[0]), cast(fx.Node, arguments[1])


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen, waiting = set(), [node]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += current.all_input_nodes
    return seen


def _learnable(nodes: set[fx.Node], stage: fx.GraphModule) -> int:
    count = 0
    for node in nodes:
        if node.op == "call_module":
            count += sum(p.numel() for p in stage.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            value = attribute(stage, str(node.target))
            count += value.numel() if isinstance(value, nn.Parameter) else 0
    return count


def _copy(stage: fx.GraphModule, node: fx.Node) -> tuple[fx.Graph, fx.Node]:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(stage.graph, copies))
    return graph, copies[node]


def _without_branch(stage: fx.GraphModule, total: fx.Node, branch: int) -> fx.GraphModule:
    graph, node = _copy(stage, total)
    operands = _operands(node)
    assert operands is not None
    with graph.inserting_before(node):  # what follows may work in place, and the shortcut may be the stage's input
        kept = graph.call_method("clone", (operands[1 - branch],))
    node.replace_all_uses_with(kept)
    module = fx.GraphModule(stage, graph, class_name="Shortcut")
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _with_scale(stage: fx.GraphModule, total: fx.Node, branch: int) -> fx.GraphModule:
    graph, node = _copy(stage, total)
    operands = _operands(node)
    assert operands is not None
    source = next(n for n in graph.nodes if n.op == "placeholder")
    with graph.inserting_after(source):
        scale = graph.placeholder("scale")
    with graph.inserting_before(node):
        scaled = graph.call_function(operator.mul, (operands[branch], scale))
    node.replace_input_with(operands[branch], scaled)
    return fx.GraphModule(stage, graph, class_name="Scaled")


class RandomDepth:
    """Leaves residual blocks out at random, each for a whole minibatch; none without a parameter to train.

    Args:
        stages: the network's.
        seed: the run's.

    Attributes:
        skipped_steps: per stage, how many steps left its branch out.

    Raises:
        UserError: no stage is a residual block.
    """

    def __init__(self, stages: Iterable[nn.Module], seed: int) -> None:
        self.blocks = [
            residual_block(cast(fx.GraphModule, stage)) if any(p.requires_grad for p in stage.parameters()) else None
            for stage in stages
        ]
        self.places = [place for place, block in enumerate(self.blocks) if block is not None]
        if not self.places:
            raise UserError("stochastic depth leaves out residual blocks, and this network has none")
        self.seed = seed
        self.skipped: frozenset[int] = frozenset()
        self.skipped_steps = [0] * len(self.blocks)
        self._scale: dict[int, float] = {}

    def draw(self, step: int, survival: Sequence[float]) -> None:
        """Decide for step ``step``; ``survival``: a probability per residual block."""
        words = random_words(len(self.blocks), derive_seed(self.seed, "depth", step))
        probability = dict(zip(self.places, survival, strict=True))
        self.skipped = frozenset(p for p in self.places if float(words[p] >> 11) / 2.0**53 >= probability[p])
        self._scale = {place: 1 / p for place, p in probability.items()}

    def run(self, place: int, stage: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Output of stage ``place``, in the form that was drawn."""
        block = self.blocks[place]
        if block is None or (place not in self.skipped and self._scale[place] == 1):
            return stage(x)
        out: Tensor = block.shortcut(x) if place in self.skipped else block.scaled(x, self._scale[place])
        return out

    def count(self) -> None:
        """The step was made: add what it left out to ``skipped_steps``."""
        for place in self.skipped:
            self.skipped_steps[place] += 1

    def shortcut_flops(self, table: Sequence[StageFlops], sample_shape: Sequence[int]) -> list[StageFlops]:
        """FLOPs per stage when its branch is left out; ``table`` gives those of whole stages."""
        shapes = [tuple(sample_shape), *(entry.output_shape for entry in table)]
        return [
            entry if block is None else count_stage_flops(nn.Sequential(block.shortcut), shape)[0]
            for entry, block, shape in zip(table, self.blocks, shapes, strict=False)
        ]


def random_depth(stages: Iterable[nn.Module], seed: int, compile: bool) -> RandomDepth:
    """The residual blocks of a run that skips some at random; raises ``UserError`` where that cannot be done."""
    if compile:
        raise UserError("stochastic depth runs another network at every step: leave --compile off")
    return RandomDepth(stages, seed)
