"""The composition of the stages is the model, and each trap of cutting a model into stages."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import Tensor, nn

from ldbench.models.fit import ModelSpec, family, model_names
from ldbench.models.zoo import build_model
from ldbench.stages.split import Stage, has_randomness, legal_cuts, split_stages, stage_parameters
from ldbench.stages.tracing import StageSplitError

SAMPLED = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)
SLOW_FAMILIES = {"inception", "mobilenetv2"}  # much like googlenet and mobilenetv3
SIZES = {"alexnet": 64, "inception_v3": 75, "vit_h_14": 28}


pytestmark = pytest.mark.usefixtures("one_thread")


def names(stages: nn.Sequential) -> list[str]:
    return [stage.stage_name for stage in stages]


def run(module: nn.Module, x: Tensor, seed: int = 1) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of all parameters of ``module`` in train mode, with a fixed random stream."""
    torch.manual_seed(seed)
    y = module(x)
    parameters = list(module.parameters())
    if module.training:
        gradients = torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)
        return y.detach(), [torch.zeros(()) if g is None else g for g in gradients]
    return y.detach(), []


def assert_is_the_model(model: nn.Module, x: Tensor) -> nn.Sequential:
    """Output, gradients and buffers of the stages equal the model's bit for bit, in train and in eval mode."""
    start = [buffer.clone() for buffer in model.buffers()]
    stages = split_stages(model)
    order = {id(parameter): i for i, parameter in enumerate(model.parameters())}
    for mode in (True, False):
        for buffer, value in zip(model.buffers(), start, strict=True):
            buffer.copy_(value)
        model.train(mode)
        stages.train(mode)
        kept = x.clone()
        expected, gradients = run(model, x.clone())
        moved = [buffer.clone() for buffer in model.buffers()]
        for buffer, value in zip(model.buffers(), start, strict=True):
            buffer.copy_(value)
        got, staged = run(stages, x)
        assert torch.equal(got, expected)
        assert torch.equal(x, kept)
        for parameter, gradient in zip(stages.parameters(), staged, strict=False):
            assert torch.equal(gradient, gradients[order[id(parameter)]])
        for buffer, value in zip(model.buffers(), moved, strict=True):
            assert torch.equal(buffer, value)
    return stages


def check_architecture(name: str) -> None:
    size = SIZES.get(name, 32)
    torch.manual_seed(0)
    model = build_model(ModelSpec(name, 3, size, 10))
    keys = list(model.state_dict())
    stages = assert_is_the_model(model, torch.randn(2, 3, size, size))
    assert {id(p) for p in stages.parameters()} == {id(p) for p in model.parameters()}
    listed = [id(p) for parameters in stage_parameters(stages) for p in parameters]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())  # each in one stage only
    assert len(stages) >= 7
    assert len(set(names(stages))) == len(stages)
    assert all(legal_cuts(stages))
    assert list(model.state_dict()) == keys
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        for stage in stages.eval():
            before = x.clone()
            y = stage(x)
            assert isinstance(y, Tensor)
            assert torch.equal(x, before), f"{stage.stage_name} wrote to its input"
            x = y


@pytest.mark.parametrize("name", SAMPLED)
def test_composition_is_the_model_bit_for_bit(name):
    check_architecture(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_composition_is_the_model_bit_for_bit_for_every_architecture(name):
    check_architecture(name)


def small_vgg() -> nn.Module:
    return build_model(ModelSpec("vgg11_bn", 3, 32, 10, width=0.125))


def small_resnet() -> nn.Module:
    return build_model(ModelSpec("resnet18", 3, 32, 10, width=0.125))


# -- what founds a stage, and what it is called


def test_vgg11_bn_has_a_stage_per_convolution_and_linear_layer():
    features = [f"features.{i}" for i in (0, 4, 8, 11, 15, 18, 22, 25)]
    assert names(split_stages(small_vgg())) == [*features, "classifier.0", "classifier.3", "classifier.6"]


def test_resnet_stages_are_its_blocks_and_keyed_without_dots():
    stages = split_stages(small_resnet())
    blocks = [f"layer{i}.{k}" for i in (1, 2, 3, 4) for k in (0, 1)]
    assert names(stages) == ["conv1", *blocks, "fc"]
    assert list(dict(stages.named_children())) == [name.replace(".", "_") for name in names(stages)]


def test_transformer_stages_name_their_encoder_layer():
    with torch.device("meta"):
        model = torchvision.models.vit_b_32(image_size=32)
    found = names(split_stages(model))
    assert found[0] == "conv_proj"
    assert found[-1] == "heads"
    assert "encoder.layers.encoder_layer_3.mlp" in found
    assert len(found) == 26


def test_norms_activations_and_pooling_join_the_stage_before_and_leading_ones_the_next():
    body = (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.PReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    model = nn.Sequential(nn.BatchNorm2d(3), *body, nn.Flatten())
    stages = assert_is_the_model(model, torch.randn(2, 3, 12, 12))
    assert names(stages) == ["1", "5"]
    assert [len(parameters) for parameters in stage_parameters(stages)] == [2 + 2 + 2 + 1, 2]


def test_model_of_norms_alone_is_one_stage():
    stages = assert_is_the_model(
        nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3)), torch.randn(2, 3, 4, 4)
    )
    assert len(stages) == 1


class TwoNamesOneKey(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Linear(4, 4), "c": nn.Linear(4, 4)})
        self.a_b = nn.Linear(4, 4)

    def forward(self, x):
        return self.a["c"](self.a_b(self.a["b"](x).relu()).relu())


def test_stage_names_stay_unique_when_dots_become_underscores():
    stages = assert_is_the_model(TwoNamesOneKey(), torch.randn(2, 4))
    assert names(stages) == ["a.b", "a_b_2", "a.c"]


# -- train and eval mode


class FunctionalDropout(nn.Module):
    """Reads ``self.training`` in its own forward, as many hand-written networks do."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.two(F.dropout(F.relu(self.one(x)), 0.5, self.training))


class Noisy(nn.Module):
    """Takes another path in train mode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        if self.training:
            x = x + torch.randn_like(x)
        return self.linear(x)


class Backbone(nn.Module):
    def __init__(self, inner: Callable[[], nn.Module]):
        super().__init__()
        self.inner, self.head = inner(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.inner(x))


def test_dropout_called_with_self_training_follows_the_mode_of_the_stages():
    stages = assert_is_the_model(FunctionalDropout(), torch.randn(4, 8))
    assert names(stages) == ["one", "two"]
    assert [has_randomness(stage) for stage in stages] == [True, False]
    copied = copy.deepcopy(stages).eval()
    x = torch.randn(4, 8)
    assert torch.equal(copied(x), stages.eval()(x))


def test_backbone_that_reads_self_training_is_still_cut():
    assert names(assert_is_the_model(Backbone(FunctionalDropout), torch.randn(4, 8))) == [
        "inner.one",
        "inner.two",
        "head",
    ]


def test_submodule_that_branches_on_the_mode_is_kept_whole():
    stages = assert_is_the_model(Backbone(Noisy), torch.randn(4, 8))
    assert names(stages) == ["inner", "head"]
    assert [has_randomness(stage) for stage in stages] == [True, False]


@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "swin_t"])
def test_stochastic_depth_is_not_frozen_by_tracing(name):
    torch.manual_seed(0)
    model = build_model(ModelSpec(name, 3, 32, 10))
    stages = split_stages(model.eval())
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(1)
        first = stages.train()(x)
        torch.manual_seed(2)
        second = stages(x)
        assert not torch.equal(first, second)
        assert torch.equal(stages.eval()(x), stages(x))


def test_densenet_dropout_in_its_layers_follows_the_mode():
    with torch.device("meta"):
        model = torchvision.models.densenet121(drop_rate=0.3)
    assert any(has_randomness(stage) for stage in split_stages(model))


def test_splitting_leaves_every_train_and_eval_flag_as_it_was():
    model = small_resnet().train()
    model.layer1.eval()
    before = {path: module.training for path, module in model.named_modules()}
    stages = split_stages(model)
    assert {path: module.training for path, module in model.named_modules()} == before
    modes = {s.stage_name: s.get_submodule("layer1").training for s in stages if "layer1" in s.stage_name}
    assert modes == {"layer1.0": False, "layer1.1": False}


def test_train_and_eval_reach_every_module_of_a_stage():
    model = small_vgg()
    stages = split_stages(model)
    for mode in (False, True):
        stages.train(mode)
        assert {module.training for module in stages.modules()} == {mode}
        assert {module.training for module in model.features.children()} == {mode}


# -- in-place operations


class InPlaceFirst(nn.Module):
    """Every way to write to the stage's input."""

    def __init__(self, write: Callable[[Tensor], Tensor]):
        super().__init__()
        self.one, self.two, self.write = nn.Linear(4, 4), nn.Linear(4, 4), write

    def forward(self, x):
        return self.two(self.write(x)) + self.one(x)


class WritesInside(nn.Module):
    def forward(self, x):
        return x.mul_(2)


def _augmented(x):
    x += 1
    return x


WRITERS = {
    "relu module": nn.ReLU(inplace=True),
    "own module": WritesInside(),
    "function": lambda x: F.relu(x, True),
    "keyword": lambda x: F.relu(x, inplace=True),
    "method": lambda x: x.clamp_(min=0),
    "view": lambda x: x.view(-1).mul_(2).view(x.shape),
    "flatten": lambda x: torch.relu_(torch.flatten(x, 1)),
    "dropout then relu": nn.Sequential(nn.Dropout(0.0), nn.ReLU(inplace=True)),
    "indexed view": lambda x: x[:, :2].fill_(0).sum() + x,
    "augmented assignment": _augmented,
    "out": lambda x: torch.mul(x, 2, out=x),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_stage_never_writes_its_input(writer):
    model = InPlaceFirst(WRITERS[writer])
    stages = split_stages(model)
    x = torch.randn(3, 4)
    kept = x.clone()
    with torch.no_grad():
        got = stages(x)
        assert torch.equal(x, kept)
        assert torch.equal(got, model(x.clone()))


def test_no_clone_where_nothing_writes_the_input():
    for model in (small_vgg(), small_resnet(), build_model(ModelSpec("mobilenet_v3_small", 3, 32, 10))):
        nodes = [node for stage in split_stages(model) for node in stage.graph.nodes]
        assert not [node for node in nodes if node.target == "clone"]


def test_statement_that_writes_in_place_is_not_lost_between_stages():
    class Statement(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.one(x)
            x.add_(1)  # result unused: the write is what counts
            return self.two(x)

    assert len(assert_is_the_model(Statement(), torch.randn(3, 4))) == 2


# -- parameters and buffers that forward() uses directly


class Direct(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.token = nn.Parameter(torch.randn(1, 4))
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x):
        x = self.one(x) + self.token
        x = torch.cat([x, self.token.expand(x.shape[0], -1)], 1)[:, :4] * (self.scale * 3)
        x = F.linear(x, self.weight.t())
        return self.two(x)


def test_directly_used_parameters_belong_to_the_stage_that_uses_them():
    model = Direct()
    stages = assert_is_the_model(model, torch.randn(3, 4))
    assert names(stages) == ["one", "weight", "two"]
    assert any(p is model.token for p in stages[0].parameters())
    assert any(p is model.weight for p in stages[1].parameters())
    assert all(legal_cuts(stages))


def test_buffer_arithmetic_is_not_frozen():
    model = Direct()
    stages = split_stages(model)
    model.scale.fill_(5.0)
    x = torch.randn(3, 4)
    assert torch.equal(stages(x), model(x))


def test_swin_and_maxvit_bias_tables_are_covered():
    for name in ("swin_t", "maxvit_t"):
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        tables = {id(p) for key, p in model.named_parameters() if "relative_position_bias_table" in key}
        assert tables
        assert tables <= {id(p) for parameters in stage_parameters(split_stages(model)) for p in parameters}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(4, 4) for _ in range(4))
        self.three.weight = self.two.weight

    def forward(self, x):
        return self.four(self.three(self.two(self.one(x).relu()).relu()).relu())


def test_tied_parameter_is_listed_in_each_stage_and_forbids_the_cut_between():
    model = Tied()
    stages = assert_is_the_model(model, torch.randn(3, 4))
    assert [any(p is model.two.weight for p in ps) for ps in stage_parameters(stages)] == [False, True, True, False]
    assert legal_cuts(stages) == [True, True, False, True]


class Twice(nn.Module):
    """The same module in two places; BatchNorm's statistics are state too."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)

    def forward(self, x):
        return self.norm(self.two(self.norm(self.one(x))))


def test_shared_batchnorm_statistics_forbid_the_cut_between():
    assert legal_cuts(assert_is_the_model(Twice(), torch.randn(5, 4))) == [True, False]


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x):
        x = self.one(x) + self.shift
        self.shift.add_(1)
        return self.two(x) * self.shift


def test_buffer_written_by_forward_is_state_and_is_not_written_while_splitting():
    model = Counter()
    stages = split_stages(model)
    assert model.shift == 0
    assert legal_cuts(stages) == [True, False]


def test_constant_buffer_used_on_both_sides_forbids_nothing():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("scale", torch.ones(4))

        def forward(self, x):
            return self.two(self.one(x) * self.scale) * self.scale

    assert legal_cuts(split_stages(Scaled())) == [True, True]


# -- sharing, copies, memory format, speed


def test_state_dict_of_the_model_keeps_its_keys_and_sees_what_the_stages_learnt():
    model, plain = small_resnet(), small_resnet()
    stages = split_stages(model)
    optimizer = torch.optim.SGD(stages.parameters(), lr=0.1)
    stages(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(x), stages.eval()(x))


def test_deepcopy_is_independent_and_keeps_names():
    stages = split_stages(small_vgg())
    copied = copy.deepcopy(stages)
    assert names(copied) == names(stages)
    assert all(isinstance(stage, Stage) for stage in copied)
    assert {id(p) for p in copied.parameters()}.isdisjoint({id(p) for p in stages.parameters()})
    assert [len(ps) for ps in stage_parameters(copied)] == [len(ps) for ps in stage_parameters(stages)]


def test_memory_format_survives_every_stage():
    model = small_resnet().to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    for stage in list(split_stages(model))[:-2]:
        x = stage(x)
        assert x.is_contiguous(memory_format=torch.channels_last)
    writer = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1).to(memory_format=torch.channels_last))
    y = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert split_stages(writer)(y).is_contiguous(memory_format=torch.channels_last)


def test_splitting_adds_nothing_to_the_model_and_draws_no_random_numbers():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) + torch.arange(4)

    model = Constant()
    before, state, python = set(vars(model)), torch.get_rng_state(), random.getstate()
    stages = split_stages(model)
    assert set(vars(model)) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python
    assert torch.equal(stages(torch.zeros(1, 4)), model(torch.zeros(1, 4)))


# -- what cannot be cut


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else x


def test_data_dependent_submodule_is_kept_whole():
    assert names(assert_is_the_model(Backbone(DataDependent), torch.ones(4, 8))) == ["inner", "head"]


class PythonNoise(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x) * random.random() + torch.rand(8)


def test_random_numbers_drawn_outside_the_graph_are_not_frozen():
    stages = split_stages(Backbone(PythonNoise))
    x = torch.ones(4, 8)
    assert names(stages) == ["inner", "head"]
    assert has_randomness(stages[0])
    assert not torch.equal(stages(x), stages(x))


class ReturnsTuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x), x


class ReturnsDict(ReturnsTuple):
    def forward(self, x):
        return {"logits": self.linear(x)}


class TwoInputs(ReturnsTuple):
    def forward(self, x, y):
        return self.linear(x) + y


class BranchesOnMode(ReturnsTuple):
    def forward(self, x):
        return self.linear(x) if self.training else self.linear(x) * 2


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (DataDependent(), "control flow"),
        (PythonNoise(), "draws random numbers"),
        (ReturnsTuple(), "returns tuple instead of one tensor"),
        (ReturnsDict(), "returns dict instead of one tensor"),
        (TwoInputs(), "missing 1 required positional argument"),
        (BranchesOnMode(), "in train mode than in eval mode"),
        (nn.ReLU(), "no parameters"),
    ],
)
def test_model_that_cannot_be_cut_gets_one_line_that_says_why_and_what_to_do(model, reason):
    model.eval()
    with pytest.raises(StageSplitError, match=reason) as caught:
        split_stages(model)
    message = str(caught.value)
    assert type(model).__name__ in message
    assert "\n" not in message
    assert len(message) < 400
    assert any(advice in message for advice in ("move the part", "switch auxiliary heads off", "give a model"))
    assert not model.training


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_named_as_the_cause(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, init_weights=False, aux_logits=True)
    with pytest.raises(
        StageSplitError, match=r"Outputs instead of one tensor in train mode; switch auxiliary heads off"
    ):
        split_stages(model)


def test_arguments_with_defaults_keep_them():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, twice=False, scale=2.0):
            x = self.one(x) * scale
            return self.two(self.two(x)) if twice else self.two(x)

    assert len(assert_is_the_model(Optional(), torch.randn(2, 4))) == 2


def test_tuples_between_modules_are_no_place_for_a_cut():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True), nn.Linear(8, 8)

        def forward(self, x):
            left, right = x.chunk(2, dim=1)
            x = torch.cat(torch.split(torch.cat([right, left], 1), 1, dim=1), 1)
            x, _ = self.attention(x, x, x, need_weights=False)
            return self.out(x)

    stages = assert_is_the_model(Attention(), torch.randn(2, 4, 8))
    assert names(stages) == ["attention", "out"]
    assert [has_randomness(stage) for stage in stages] == [True, False]


def test_sample_of_the_default_run_has_an_architecture_of_every_family():
    assert {family(name) for name in SAMPLED} >= {family(name) for name in model_names()} - SLOW_FAMILIES
