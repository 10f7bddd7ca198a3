"""Architectures fit the images, train the network they claim to be, and wrong requests get one helpful line."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys

import pytest
import torch
import torchvision.models
from torch import nn

from ldbench.errors import UserError
from ldbench.models.fit import ModelSpec, blueprint, family, model_names
from ldbench.models.recipes import default_recipe
from ldbench.models.zoo import build_model, describe_model

pytestmark = pytest.mark.usefixtures("one_thread")


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


def test_every_classification_architecture_of_torchvision_has_a_name_a_family_and_a_recipe():
    assert len(model_names()) >= 80
    assert {"vgg11_bn", "resnet152", "vit_h_14", "maxvit_t"} <= set(model_names())
    for name in model_names():
        recipe = default_recipe(name)
        assert recipe.optimizer in ("sgd", "adam", "adamw")
        assert 0 < recipe.lr <= 0.1
        assert recipe.batch_size == 128


def test_architectures_at_224_are_torchvisions_own():
    special = {"googlenet": {"aux_logits": False, "init_weights": True}}
    special["inception_v3"] = special["googlenet"]
    for name in (
        "alexnet",
        "googlenet",
        "inception_v3",
        "maxvit_t",
        "mobilenet_v2",
        "resnet18",
        "swin_t",
        "vgg16_bn",
        "vit_b_16",
    ):
        with torch.device("meta"):
            own = torchvision.models.get_model(name, **special.get(name, {}))
        assert shapes(blueprint(ModelSpec(name, 3, 224, 1000))) == shapes(own), name


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 32, 10), (3, 96, 7), (2, 224, 1000)])
def test_every_architecture_takes_the_images_and_classes_it_is_fitted_to(name, channels, size, classes):
    try:
        spec = ModelSpec(name, channels, size, classes)
        describe_model(spec)
    except UserError as error:
        size = int(str(error).rpartition("= ")[2])
    model = blueprint(ModelSpec(name, channels, size, classes))
    for mode in (False, True):
        assert model.train(mode)(torch.empty(2, channels, size, size, device="meta")).shape == (2, classes)


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11_bn", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]
)
def test_built_network_is_finite_and_reproducible_from_the_seed(name):
    spec = ModelSpec(name, 1, 32, 5)
    torch.manual_seed(3)
    model = build_model(spec)
    torch.manual_seed(3)
    again = build_model(spec)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    y = model(torch.randn(4, 1, 32, 32))
    assert y.shape == (4, 5)
    assert y.isfinite().all()
    assert y.abs().max() < 100


def test_grey_images_get_a_first_convolution_of_their_own_with_the_same_output_variance():
    torch.manual_seed(0)
    grey, colour = (build_model(ModelSpec("mobilenet_v2", channels, 32, 10)).features[0][0] for channels in (1, 3))
    assert grey.weight.shape[1] == 1
    spread = [conv.weight.std().item() * math.sqrt(conv.in_channels) for conv in (grey, colour)]
    assert spread[0] == pytest.approx(spread[1], rel=0.2)


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
def test_resnets_keep_the_resolution_of_small_images(name):
    small, large = blueprint(ModelSpec(name, 3, 64, 10)), blueprint(ModelSpec(name, 3, 65, 10))
    assert (small.conv1.kernel_size, small.conv1.stride, type(small.maxpool)) == ((3, 3), (1, 1), nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride, type(large.maxpool)) == ((7, 7), (2, 2), nn.MaxPool2d)
    assert describe_model(ModelSpec(name, 3, 64, 10))["stem"] == "3x3 stride 1, 3 to 64 channels, no max-pool"
    assert describe_model(ModelSpec(name, 3, 96, 10))["stem"] == "7x7 stride 2, 3 to 64 channels"


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (32, "features pooled to 1x1, linear 512-512-512-10"),
        (64, "features pooled to 1x1, linear 512-512-512-10"),
        (96, "features pooled to 3x3, linear 4608-4096-4096-10"),
        (224, "features pooled to 7x7, linear 25088-4096-4096-10"),
        (256, "features pooled to 7x7, linear 25088-4096-4096-10"),
    ],
)
def test_vgg_head_does_not_blow_features_up(size, head):
    assert describe_model(ModelSpec("vgg11", 3, size, 10))["head"] == head


def test_vgg_signal_reaches_the_output_of_a_narrow_network():
    torch.manual_seed(0)
    model = build_model(ModelSpec("vgg11", 1, 32, 10, width=0.25)).eval()
    assert model(torch.randn(64, 1, 32, 32)).std() > 0.01


def test_batchnorm_statistics_follow_within_a_short_run():
    momenta = {
        module.momentum
        for module in blueprint(ModelSpec("mnasnet0_5", 3, 32, 10)).modules()
        if hasattr(module, "momentum")
    }
    assert momenta == {0.1}
    assert describe_model(ModelSpec("mnasnet0_5", 3, 32, 10))["batch_norm"] == "momentum 0.1"


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("size", [32, 224])
def test_width_multiplies_every_channel_count_but_image_and_classes(name, size):
    full, half = (blueprint(ModelSpec(name, 3, size, 10, width)) for width in (1.0, 0.5))
    first, last = (([m for m in half.modules() if isinstance(m, kind)]) for kind in (nn.Conv2d, nn.Linear))
    assert first[0].in_channels == 3
    assert first[0].out_channels == 32
    assert last[-1].out_features == 10
    for narrow, wide in zip(half.modules(), full.modules(), strict=True):
        assert type(narrow) is type(wide)
        if isinstance(wide, nn.Conv2d):
            assert narrow.out_channels * 2 == wide.out_channels
            assert narrow.groups == wide.groups
    assert half(torch.empty(2, 3, size, size, device="meta")).shape == (2, 10)


def test_width_rounds_to_whole_channels_and_groups():
    assert build_model(ModelSpec("vgg11_bn", 1, 32, 10, 0.1))(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    narrow = blueprint(ModelSpec("resnext50_32x4d", 1, 32, 10, 0.1))
    groups = {(m.groups, m.out_channels % 32) for m in narrow.modules() if isinstance(m, nn.Conv2d)}
    assert groups == {(1, 0), (32, 0)}


def test_dropout_overrides_every_dropout_layer_and_zero_fits_models_without():
    assert {
        m.p for m in blueprint(ModelSpec("vgg11", 3, 32, 10, dropout=0.2)).modules() if isinstance(m, nn.Dropout)
    } == {0.2}
    dense = blueprint(ModelSpec("densenet121", 3, 32, 10, dropout=0.2))
    assert {m.drop_rate for m in dense.modules() if hasattr(m, "drop_rate")} == {0.2}
    assert blueprint(ModelSpec("resnet18", 3, 32, 10, dropout=0.0))


def test_configuration_of_a_cell_builds_the_same_plain_module_and_takes_its_weights():
    config = {
        "model": "resnet18",
        "channels": 1,
        "image_size": 32,
        "classes": 10,
        "width": 0.125,
        "dropout": None,
        "lr": 0.1,
    }
    model = build_model(config)
    assert type(model) is torchvision.models.ResNet
    assert all(type(module).__module__.startswith(("torch.nn", "torchvision")) for module in model.modules())
    other = build_model(ModelSpec("resnet18", 1, 32, 10, 0.125))
    other.load_state_dict(model.state_dict())
    assert copy.deepcopy(model)


SMALLEST = [
    ("vgg11", 28, 32), ("inception_v3", 32, 75), ("alexnet", 32, 63), ("vit_b_16", 28, 32), ("vit_h_14", 32, 42),
    ("maxvit_t", 28, 32), ("densenet121", 16, 29),
]  # fmt: skip


@pytest.mark.parametrize(("name", "size", "works"), SMALLEST)
def test_image_too_small_names_the_size_that_works(name, size, works):
    with pytest.raises(UserError, match=rf"{size}x{size} pixels, .* {works}: set image_size = {works}$"):
        build_model(ModelSpec(name, 3, size, 10))
    assert describe_model(ModelSpec(name, 3, works, 10))["image_size"].startswith(str(works))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet19"}, "resnet18"),
        ({"name": "fasterrcnn_resnet50_fpn"}, "unknown"),
        ({"classes": 1}, "at least 2 classes"),
        ({"channels": 0}, "0 channels"),
        ({"dropout": 1.0}, "below 1"),
        ({"dropout": 0.5}, "no dropout layer"),
        ({"width": 0.0}, "above 0"),
        ({"name": "densenet121", "width": 0.5}, "no width multiplier"),
    ],
)
def test_wrong_requests_get_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(dataclasses.replace(ModelSpec("resnet18", 3, 32, 10), **changes))
    assert "\n" not in str(caught.value)


USER_MODULE = """
from torch import nn
import torch
class Net(nn.Module):
    def __init__(self, channels, image_size, classes):
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(channels * image_size**2, classes)
    def forward(self, x):
        return self.linear(self.drop(x.flatten(1)))
def net(*, channels, image_size, classes): return Net(channels, image_size, classes)
def any_options(**options): return Net(**options)
def positional(channels): return Net(channels, 8, 2)
def nothing(**options): pass
def eleven(*, channels, image_size, classes): return Net(channels, image_size, 11)
def too_large(*, channels, image_size, classes): return Net(channels, 2 * image_size, classes)
NUMBER = 3
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets_for_this_test.py").write_text(USER_MODULE)
    (tmp_path / "my_broken_nets.py").write_text("import no_such_package_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the current folder is added to it
    return "my_nets_for_this_test"


@pytest.mark.parametrize("factory", ["net", "any_options", "Net"])
def test_factory_of_the_user_gets_channels_image_size_and_classes(user_module, factory):
    spec = ModelSpec(f"{user_module}:{factory}", 1, 8, 4, dropout=0.25)
    state = torch.get_rng_state()
    model = build_model(spec)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 4)
    assert model.drop.p == 0.25
    assert model.training
    assert not torch.equal(torch.get_rng_state(), state)  # fresh weights come from the global stream
    assert describe_model(spec)["head"] == "linear 64-4"
    assert family(spec.name) == "user"
    assert default_recipe(spec.name).optimizer == "adamw"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_nets_for_this_test:nett", "did you mean net"),
        ("my_nets_for_this_test:NUMBER", "is not callable"),
        ("my_nets_for_this_test:positional", "must accept the keyword arguments channels, image_size and classes"),
        ("my_nets_for_this_test:nothing", "must return a torch.nn.Module, not NoneType"),
        ("my_nets_for_this_test:eleven", r"shape \(2, 4\) for two images, not shape \(2, 11\)"),
        ("my_nets_for_this_test:too_large", "does not run on 1x8x8 images"),
        ("no_such_module_here:net", "cannot import no_such_module_here"),
        ("my_broken_nets:net", "no_such_package_anywhere"),
        ("my_nets_for_this_test:", "write package.module:factory"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_factory_that_does_not_fit_gets_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        build_model(ModelSpec(name, 1, 8, 4))
    assert "\n" not in str(caught.value)
