"""Where a traced graph can be cut, which cuts found a stage, what a stage is called, and its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn

from ldbench.stages.side_effects import may_write_input, node_name
from ldbench.stages.tracing import attribute, output_node

# Learnable, yet no layer of their own: a norm or an activation does not found a stage.
_NOT_FOUNDING = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.PReLU,
)  # fmt: skip

# A parameter that forward() uses directly makes a layer where it is multiplied with the activations, not where it is
# merely added or appended (class token, position embedding).
_PRODUCTS = frozenset({
    "addmm", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d", "einsum", "embedding", "linear", "matmul", "mm", "multi_head_attention_forward",
})  # fmt: skip

# Their result is a tuple, a size or an attribute: no place for a cut.
_NO_TENSOR = frozenset({
    "chunk", "dsplit", "getattr", "hsplit", "meshgrid", "size", "sort", "split", "split_with_sizes", "std_mean",
    "tensor_split", "topk", "unbind", "unsafe_chunk", "unsafe_split", "var_mean", "vsplit",
})  # fmt: skip


@dataclass(frozen=True)
class Section:
    """Consecutive nodes of a graph, and the one value that what follows needs of all that has been computed so far."""

    nodes: list[fx.Node]
    result: fx.Node

    def __add__(self, following: Section) -> Section:
        return Section(self.nodes + following.nodes, following.result)


def cut_sections(graph: fx.Graph) -> list[Section]:
    """Cut after every node behind which only one value is still live, that node's output as a rule.

    Parameters and buffers (get_attr) are no values: every stage that uses one fetches it again.
    """
    order = list(graph.nodes)
    position = {node: i for i, node in enumerate(order)}
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in order}
    live: set[fx.Node] = set()
    nodes: list[fx.Node] = []
    sections: list[Section] = []
    for i, node in enumerate(order[:-1]):
        if node.op == "get_attr":
            continue
        live = {value for value in live if last_use[value] > i}
        if last_use[node] > i:
            live.add(node)
        if node.op != "placeholder":
            nodes.append(node)
            if len(live) == 1 and _is_one_tensor(*live):
                sections.append(Section(nodes, *live))
                nodes = []
    if nodes:  # forward() ends with statements that the output does not need, or returns a tuple's item
        sections.append(Section(nodes, output_node(graph)))
    return sections


def _is_one_tensor(node: fx.Node) -> bool:
    if node.op != "call_module" and node_name(node) in _NO_TENSOR:
        return False
    for user in node.users:
        # Unpacking looks like x[0] of a tensor, after which a cut is given up; x[:, 0] is no unpacking.
        if node_name(user) == "getitem" and isinstance(user.args[1], (int, str)):
            return False
        if node_name(user) == "getattr" and user.args[1] in ("values", "indices", "logits"):
            return False
    return True


def merge_sections(sections: Iterable[Section], root: nn.Module) -> list[Section]:
    """Merge sections without a learnable layer into the one before; leading ones join the first that has a layer."""
    merged: list[Section] = []
    founded = False
    for section in sections:
        founds = bool(_layers(section.nodes, root))
        if merged and not (founded and founds):
            merged[-1] += section
        else:
            merged.append(section)
        founded = founded or founds
    return merged


def _layers(nodes: Iterable[fx.Node], root: nn.Module) -> list[str]:
    """Paths of the learnable layers among the nodes: what founds a stage."""
    paths = []
    weights: dict[fx.Node, str] = {}  # values made of parameters alone, such as self.weight.t()
    for node in nodes:
        weights |= {n: str(n.target) for n in node.all_input_nodes if _parameter(n, root) is not None}
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


def _parameter(node: fx.Node, root: nn.Module) -> nn.Parameter | None:
    value = attribute(root, str(node.target)) if node.op == "get_attr" else None
    return value if isinstance(value, nn.Parameter) else None


def stage_names(stages: Iterable[Section], root: nn.Module) -> list[str]:
    """For each stage the path of its first layer, or of the largest module around it that lies in the stage as a whole.

    Unique, also with ``.`` read as ``_``.
    """
    names: list[str] = []
    taken: Counter[str] = Counter()
    for stage in stages:
        inside, bare = _parameters_used(stage.nodes, root)
        name = (_layers(stage.nodes, root) or bare or ["model"])[0]
        while (parent := name.rpartition(".")[0]) and inside.issuperset(root.get_submodule(parent).parameters()):
            name = parent
        key = name.replace(".", "_")
        taken[key] += 1
        names.append(name if taken[key] == 1 else f"{name}_{taken[key]}")
    return names


def _parameters_used(nodes: Iterable[fx.Node], root: nn.Module) -> tuple[set[nn.Parameter], list[str]]:
    """All parameters that the nodes use, and the paths of those that they use directly."""
    used: set[nn.Parameter] = set()
    bare = []
    for node in nodes:
        if node.op == "call_module":
            used.update(root.get_submodule(str(node.target)).parameters())
        for fetched in node.all_input_nodes:
            parameter = _parameter(fetched, root)
            if parameter is not None:
                used.add(parameter)
                bare.append(str(fetched.target))
    return used, bare


def stage_graph(stage: Section, source: fx.Node, root: nn.Module) -> fx.Graph:
    """The nodes of one stage as a graph of their own. ``source``: the result of the stage before."""
    graph = fx.Graph()
    stage_input = graph.placeholder("x")
    copies = {source: stage_input}
    if may_write_input(stage.nodes, source, root):
        # The stage's input may be a row of the activation store; a clone keeps its memory format.
        copies[source] = graph.call_method("clone", (stage_input,))

    def fetch(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter or buffer: everything else that the stage uses lies in the stage
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in stage.nodes:
        copies[node] = graph.node_copy(node, fetch)
    graph.output(fetch(stage.result))
    return graph
