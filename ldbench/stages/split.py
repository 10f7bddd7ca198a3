"""Cut a model into stages on its ``torch.fx`` graph: one tensor in, one tensor out, a learnable layer in each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import fx, nn

from ldbench.stages.sections import cut_sections, merge_sections, stage_graph, stage_names
from ldbench.stages.side_effects import draws_random_numbers, writes_in_place
from ldbench.stages.tracing import StageSplitError, attribute, trace


class Stage(fx.GraphModule):
    """One stage. Its submodules, parameters and buffers are the model's own objects; it never writes to its input.

    Attributes:
        stage_name: where in the model it is, for people (``layer1.0``, ``classifier.6``).
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, stage_name: str) -> None:
        super().__init__(root, graph, class_name="Stage")
        self.stage_name = stage_name
        # The containers between the stage and the model's own modules are new and start in train mode.
        for path, module in self.named_modules():
            module.training = root.get_submodule(path).training

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        copied = cast(Stage, super().__deepcopy__(memo))
        copied.stage_name = self.stage_name
        return copied


def split_stages(model: nn.Module) -> nn.Sequential:
    """Cut ``model`` into stages whose composition is the model, bit for bit, in train and in eval mode.

    The graph is cut after every node whose output is the only value still live. Sections without a learnable layer
    (activation, pooling, norm) join the section before them; leading ones join the first that has one.

    Move the model to its device before, and switch between train and eval mode through the returned module.

    Args:
        model: takes one tensor and returns one tensor. It is not changed; its mode stays what it was.

    Returns:
        The stages in order, each a :class:`Stage`, keyed by their names with ``.`` replaced by ``_``. Parameters that
        ``forward`` never uses belong to no stage.

    Raises:
        StageSplitError: the model cannot be traced, has no parameters, or returns something else than one tensor.
    """
    if next(model.parameters(), None) is None:
        name = type(model).__name__
        raise StageSplitError(f"{name} has no parameters, nothing to train: give a model with learnable layers")
    root, graph = trace(model)
    sections = merge_sections(cut_sections(graph), root)
    source = next(node for node in graph.nodes if node.op == "placeholder")
    stages = nn.Sequential()
    for name, section in zip(stage_names(sections, root), sections, strict=True):
        stages.add_module(name.replace(".", "_"), Stage(root, stage_graph(section, source, root), name))
        source = section.result
    stages.training = model.training
    return stages


def stage_parameters(stages: Iterable[nn.Module]) -> list[list[nn.Parameter]]:
    """Parameters of each stage, each once per stage; one that several stages use is listed under every one of them."""
    return [list(stage.parameters()) for stage in stages]


def legal_cuts(stages: Iterable[nn.Module]) -> list[bool]:
    """Whether the first c stages may be dropped, for c = 0 .. number of stages - 1, see ``cut_obstacles``."""
    return [not obstacle for obstacle in cut_obstacles(stages)]


def cut_obstacles(stages: Iterable[nn.Module]) -> list[str]:
    """Why the first c stages may not be dropped, for c = 0 .. number of stages - 1; "" where they may.

    A stage before the cut and one behind it share a parameter, or a buffer that training changes: dropped stages must
    not move any more. Or a BatchNorm before the cut has no running statistics: its output for a sample depends on the
    other samples of the minibatch, in evaluation mode too, and could not be stored.
    """
    graphs = [cast(fx.GraphModule, stage) for stage in stages]
    written = {buffer for stage in graphs for buffer in _written(stage)}
    state = [_state(stage, written) for stage in graphs]
    mixing = next((s for s, stage in enumerate(graphs) if any(map(_mixes_samples, stage.modules()))), len(graphs))
    obstacles = []
    for cut in range(len(state)):
        if not set().union(*state[:cut]).isdisjoint(set().union(*state[cut:])):
            obstacles.append("stages before and behind it share a parameter")
        else:
            obstacles.append("a BatchNorm before it has no running statistics" if cut > mixing else "")
    return obstacles


def _mixes_samples(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def has_randomness(stage: nn.Module) -> bool:
    """Whether the stage draws random numbers in train mode: dropout, stochastic depth, noise, at rates above 0."""
    return draws_random_numbers(cast(fx.GraphModule, stage))


def _state(stage: fx.GraphModule, written: set[int]) -> set[int]:
    """Identities of what training changes in a stage."""
    held = {id(parameter) for parameter in stage.parameters()}
    for module in stage.modules():
        buffers = {id(buffer) for buffer in module.buffers(recurse=False)}
        # What forward() reads directly hangs on plain containers, and is constant unless forward() writes it, too.
        held |= buffers & written if module is stage or type(module) is nn.Module else buffers
    return held


def _written(stage: fx.GraphModule) -> set[int]:
    """Identities of the buffers that ``forward`` itself writes in place."""
    targets = [node.args[0] for node in stage.graph.nodes if node.args and writes_in_place(node)]
    return {id(attribute(stage, str(t.target))) for t in targets if isinstance(t, fx.Node) and t.op == "get_attr"}


def stage_groups(stages: Sequence[Sequence[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """Each parameter once, with the last stage that uses it."""
    owner = {id(p): s for s, stage in enumerate(stages) for p in stage}
    seen: set[int] = set()
    groups: list[list[nn.Parameter]] = [[] for _ in stages]
    for stage in stages:
        for p in stage:
            if id(p) not in seen:
                seen.add(id(p))
                groups[owner[id(p)]].append(p)
    return groups
