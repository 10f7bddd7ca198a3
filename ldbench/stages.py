"""Cut a model into stages on its ``torch.fx`` graph: one tensor in, one tensor out, at least one learnable layer each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, cast

from torch import fx, nn

from ldbench.effects import draws_random_numbers, may_write_input, node_name, writes_in_place
from ldbench.tracing import StageSplitError, attribute, trace

__all__ = ["Stage", "StageSplitError", "has_randomness", "legal_cuts", "split_stages", "stage_parameters"]

# Learnable, yet no layer of their own: a norm or an activation does not found a stage.
_NOT_FOUNDING = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.PReLU,
)  # fmt: skip

# A parameter that forward() uses directly makes a layer where it is multiplied with the activations, not where it is
# merely added or appended (class token, position embedding).
_PRODUCTS = frozenset(
    "linear bilinear matmul mm bmm einsum addmm baddbmm embedding conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d multi_head_attention_forward".split()
)

_TUPLES = frozenset(
    "chunk split split_with_sizes tensor_split hsplit vsplit dsplit unbind unsafe_chunk unsafe_split size topk sort var_mean "
    "std_mean meshgrid getattr".split()
)


class Stage(fx.GraphModule):
    """One stage. Its submodules, parameters and buffers are the model's own objects; it never writes to its input.

    Attributes:
        stage_name: where in the model it is, for people (``layer1.0``, ``classifier.6``).
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, stage_name: str) -> None:
        super().__init__(root, graph, class_name="Stage")
        self.stage_name = stage_name
        for path, module in self.named_modules():  # the containers between the stage and the model's own modules are new
            module.training = root.get_submodule(path).training

    def __deepcopy__(self, memo: dict[int, Any]) -> Stage:
        copied = cast(Stage, super().__deepcopy__(memo))
        copied.stage_name = self.stage_name
        return copied


def split_stages(model: nn.Module) -> nn.Sequential:
    """Cut ``model`` into stages whose composition is the model, bit for bit, in train and in eval mode.

    The graph is cut after every node whose output is the only value still live. Sections without a learnable layer
    (activation, pooling, norm) join the section before them; leading ones join the first that has one.

    Move the model to its device before; switch between train and eval mode through the returned module.

    Args:
        model: takes one tensor and returns one tensor. It is not changed; its mode stays what it was.

    Returns:
        The stages in order, each a :class:`Stage`, keyed by their names with ``.`` replaced by ``_``. Parameters that
        ``forward`` never uses belong to no stage.

    Raises:
        StageSplitError: the model cannot be traced, has no parameters, or returns something else than one tensor.
    """
    root, graph = trace(model)
    if next(model.parameters(), None) is None:
        raise StageSplitError(f"{type(model).__name__} has no parameters: there is nothing to train and nothing to drop")
    groups = _grouped(_sections(graph), root)
    source = next(node for node in graph.nodes if node.op == "placeholder")
    names = _names(groups, root)
    stages = nn.Sequential()
    for name, sections in zip(names, groups, strict=True):
        nodes = [node for section in sections for node in section]
        result = _result(graph) if sections is groups[-1] else nodes[-1]
        stages.add_module(name.replace(".", "_"), Stage(root, _subgraph(nodes, source, result, root), name))
        source = result
    stages.training = model.training
    return stages


def stage_parameters(stages: Iterable[nn.Module]) -> list[list[nn.Parameter]]:
    """Parameters of each stage, each once per stage; one that several stages use is listed under every one of them."""
    return [list(stage.parameters()) for stage in stages]


def legal_cuts(stages: Sequence[nn.Module] | nn.Sequential) -> list[bool]:
    """Whether the first c stages may be dropped, for c = 0 .. number of stages - 1.

    False when a stage before the cut and one behind it share a parameter or a buffer that training changes: dropped
    stages must not move any more.
    """
    state = [_state(stage) for stage in stages]
    return [set().union(*state[:cut]).isdisjoint(set().union(*state[cut:])) for cut in range(len(state))]


def has_randomness(stage: nn.Module) -> bool:
    """Whether the stage draws random numbers in train mode: dropout, stochastic depth, noise, at rates above 0."""
    return draws_random_numbers(cast(fx.GraphModule, stage))


def _state(stage: nn.Module) -> set[int]:
    """Identities of what training changes. Buffers that ``forward`` reads directly are constants unless written in place."""
    held = {id(parameter) for parameter in stage.parameters()}
    for module in stage.modules():
        if module is not stage and type(module) is not nn.Module:
            held |= {id(buffer) for buffer in module.buffers(recurse=False)}
    for node in cast(fx.GraphModule, stage).graph.nodes:
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node) and target.op == "get_attr" and writes_in_place(node):
            held.add(id(attribute(stage, str(target.target))))
    return held


def _result(graph: fx.Graph) -> fx.Node:
    return cast(fx.Node, next(node for node in reversed(graph.nodes) if node.op == "output").args[0])


def _sections(graph: fx.Graph) -> list[list[fx.Node]]:
    """Nodes in order, cut after every node whose output is the only value still live.

    Parameters and buffers (get_attr) are no values: every stage that uses one fetches it again.
    """
    order = list(graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in order}
    live: set[fx.Node] = set()
    sections: list[list[fx.Node]] = [[]]
    for i, node in enumerate(order[:-1]):
        if node.op == "get_attr":
            continue
        live = {value for value in live if last_use[value] > i}
        if last_use[node] > i:
            live.add(node)
        if node.op != "placeholder":
            sections[-1].append(node)
            if live == {node} and _is_one_tensor(node):
                sections.append([])
    if not sections[-1] and len(sections) > 1:
        sections.pop()
    return sections


def _is_one_tensor(node: fx.Node) -> bool:
    if node.op != "call_module" and node_name(node) in _TUPLES:
        return False
    for user in node.users:
        name = node_name(user)
        if name == "getitem" and isinstance(user.args[1], (int, str)):  # x[0] of a tensor looks the same: no cut there either
            return False
        if name == "getattr" and user.args[1] in ("values", "indices", "logits"):
            return False
    return True


def _grouped(sections: list[list[fx.Node]], root: nn.Module) -> list[list[list[fx.Node]]]:
    """Sections that make one stage together; the founding one comes first, behind leading ones."""
    groups: list[list[list[fx.Node]]] = []
    leading: list[list[fx.Node]] = []
    for section in sections:
        if _layers(section, root):
            groups.append([section])
        elif groups:
            groups[-1].append(section)
        else:
            leading.append(section)
    if not groups:
        return [[[node for section in leading for node in section]]]
    groups[0][:1] = [[node for section in [*leading, groups[0][0]] for node in section]]
    return groups


def _layers(section: list[fx.Node], root: nn.Module) -> list[str]:
    """Paths of the learnable layers in a section: what founds a stage."""
    paths = []
    weights: dict[fx.Node, str] = {}  # values made of parameters alone, such as self.weight.t()
    for node in section:
        for fetched in node.all_input_nodes:
            if fetched.op == "get_attr" and isinstance(attribute(root, str(fetched.target)), nn.Parameter):
                weights[fetched] = str(fetched.target)
        bare = [weights[n] for n in node.all_input_nodes if n in weights]
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            if next(module.parameters(), None) is not None and not isinstance(module, _NOT_FOUNDING):
                paths.append(str(node.target))
        elif bare and node_name(node) in _PRODUCTS:
            paths.append(bare[0])
        elif bare and len(bare) == len(node.all_input_nodes):
            weights[node] = bare[0]
    return paths


def _names(groups: list[list[list[fx.Node]]], root: nn.Module) -> list[str]:
    """For each stage the path of the largest module that has all its parameters in it; unique with ``.`` read as ``_``."""
    names: list[str] = []
    taken: Counter[str] = Counter()
    for group in groups:
        inside, bare = _parameters_used([node for section in group for node in section], root)
        layers = _layers(group[0], root) or bare or ["model"]
        parts = [path.split(".") for path in layers]
        same = [words[0] for words in zip(*parts, strict=False) if len(set(words)) == 1]
        name = ".".join(same) or layers[0]
        while (parent := name.rpartition(".")[0]) and {id(p) for p in root.get_submodule(parent).parameters()} <= inside:
            name = parent
        taken[name.replace(".", "_")] += 1
        count = taken[name.replace(".", "_")]
        names.append(name if count == 1 else f"{name}_{count}")
    return names


def _parameters_used(nodes: list[fx.Node], root: nn.Module) -> tuple[set[int], list[str]]:
    """Identities of all parameters the nodes use, and the paths of those that they use directly."""
    used: set[int] = set()
    bare = []
    for node in nodes:
        if node.op == "call_module":
            used |= {id(parameter) for parameter in root.get_submodule(str(node.target)).parameters()}
        for fetched in node.all_input_nodes:
            if fetched.op == "get_attr" and isinstance(attribute(root, str(fetched.target)), nn.Parameter):
                used.add(id(attribute(root, str(fetched.target))))
                bare.append(str(fetched.target))
    return used, bare


def _subgraph(nodes: list[fx.Node], source: fx.Node, result: fx.Node, root: nn.Module) -> fx.Graph:
    """The nodes of one stage as a graph of their own, from the value of ``source`` to that of ``result``."""
    graph = fx.Graph()
    stage_input = graph.placeholder("x")
    copies = {source: stage_input}
    if may_write_input(nodes, source, root):
        # The stage's input may be a row of the activation store; a clone keeps its memory format.
        copies[source] = graph.call_method("clone", (stage_input,))

    def fetch(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or buffer: everything else that the stage uses lies in the stage
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, fetch)
    graph.output(fetch(result))
    return graph
