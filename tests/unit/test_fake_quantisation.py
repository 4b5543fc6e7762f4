"""Quantisation-aware training: what it computes is what the int8 file computes, and it repairs what that file lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpinas.models.cnn3d import Network
from mpinas.training import fake_quantisation
from mpinas.training.deployed import Deployed
from mpinas.training.export import export_onnx
from mpinas.training.precision import WEIGHT_LIMIT, convert

GENOME = {
    "frames": 1, "field": 8, "scale": 1, "stem": "fold", "stem_width": 8, "stem_stride": 1, "stages": 1, "depth1": 2,
    "width1": 16, "kernel_time": 1, "kernel_space": 3, "block": "plain", "head": "grid", "head_width": 32,
}  # fmt: skip
TRAINING = slice(800)
HELD_OUT = slice(800, None)


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's handwritten digits, (1797, 1, 8, 8) uint8, and what they are, (1797,)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (n, 8, 8) -> (n, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(data.target)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(model: nn.Module, digits: tuple[torch.Tensor, torch.Tensor], epochs: int, learning_rate: float) -> None:
    images, targets = (each[TRAINING] for each in digits)
    order = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=order).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), targets[batch]).backward()
            optimizer.step()
    model.eval()


def trained(digits: tuple[torch.Tensor, torch.Tensor]) -> Network:
    torch.manual_seed(0)
    model = Network(GENOME, (1, 8, 8), 10)
    train(model, digits, epochs=4, learning_rate=4e-3)
    return model


def in_torch(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(images).numpy()


def in_int8(model: nn.Module, digits: tuple[torch.Tensor, torch.Tensor], path: Path) -> np.ndarray:
    """Outputs of the model's int8 file for what was held out."""
    export_onnx(model, (1, 8, 8), path, {})
    convert(path, "int8", digits[0][:64].numpy())
    return Deployed(path).run(digits[0][HELD_OUT].numpy())


def wrong(outputs: np.ndarray, digits: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((outputs.argmax(1) != digits[1][HELD_OUT].numpy()).mean())


def make_one_channel_loud(model: Network, before: str, factor: float) -> None:
    """Scale a channel up and what takes it in down: the same function, but one range for all channels hides the rest.

    Such networks come out of training; M. Nagel et al., Data-Free Quantization, ICCV 2019, describe them.
    """
    block, products = model.features[2].body, [model.head[1], model.head[3]]
    places = products[0].in_features // GENOME["width1"]  # of each channel
    giver, taken = {
        "convolution": (model.features[0][1], block[0].weight[:, 0]),
        "product": (block[1], products[0].weight[:, :places]),
        "last product": (products[0], products[1].weight[:, 0]),
    }[before]
    with torch.no_grad():
        giver.weight[0] *= factor
        giver.bias[0] *= factor
        taken /= factor


def test_training_with_rounding_repairs_what_conversion_lost(digits, tmp_path):
    model = trained(digits)
    before = in_torch(model, digits[0][HELD_OUT])
    make_one_channel_loud(model, "convolution", 250)
    np.testing.assert_allclose(in_torch(model, digits[0][HELD_OUT]), before, atol=1e-3)
    lost = wrong(in_int8(model, digits, tmp_path / "model.onnx"), digits)
    assert lost > wrong(before, digits) + 0.1
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    fake_quantisation.attach(model)
    train(model, digits, epochs=3, learning_rate=1e-3)
    seen = in_torch(model, digits[0][HELD_OUT])
    fake_quantisation.detach(model)
    outputs = in_int8(model, digits, tmp_path / "model.onnx")
    assert wrong(outputs, digits) < lost - 0.1
    # ranges are averages here and extremes in the file, so the last bits differ; the answers hardly do
    assert np.mean(seen.argmax(1) == outputs.argmax(1)) > 0.95

    plain = Network(GENOME, (1, 8, 8), 10)
    plain.load_state_dict(state)
    train(plain, digits, epochs=3, learning_rate=1e-3)
    as_long = wrong(in_int8(plain, digits, tmp_path / "model.onnx"), digits)
    assert wrong(outputs, digits) <= as_long, "no worse than as much training without"


@pytest.mark.parametrize(
    ("changes", "loud", "share"),
    [
        ({}, "", 0.75),
        ({"block": "separable", "head": "mean"}, "", 0.4),
        ({"depth1": 1, "scale": 2}, "convolution", 0.4),
        ({"depth1": 1}, "product", 0.4),
        ({"depth1": 1}, "last product", 0.4),
    ],
)
def test_an_attached_network_computes_what_its_file_computes(digits, tmp_path, changes, loud, share):
    """Ranges taken from the very windows that the file was calibrated on.

    What is left: the file also rounds what a convolution gives before it is added or averaged, and a number that lies
    between two integers may go either way. In all a `share` of what rounding changes; a loud channel makes that large.
    """
    torch.manual_seed(0)
    model = Network(GENOME | changes, (1, 8, 8), 10)
    train(model, digits, epochs=2, learning_rate=4e-3)
    if loud:
        make_one_channel_loud(model, loud, 100)
    plain = in_torch(model, digits[0][HELD_OUT])
    outputs = in_int8(model, digits, tmp_path / "model.onnx")
    fake_quantisation.attach(model)
    for module in model.modules():
        module.train(not isinstance(module, nn.BatchNorm2d))
    in_torch(model, digits[0][:64])
    model.eval()
    rounded = in_torch(model, digits[0][HELD_OUT])

    def off(one: np.ndarray) -> float:
        return float(np.sqrt(np.square(one - outputs).mean()) / outputs.std())

    assert 0 < off(rounded) < share * off(plain)


def test_weights_are_multiples_of_a_scale_for_each_output():
    weight = torch.tensor([[1.0, -0.5, 0.013], [0.0, 0.0, 0.0], [-6.4, 3.21, 0.04]], requires_grad=True)
    rounded = fake_quantisation._rounded(weight)
    assert WEIGHT_LIMIT == 64
    expected = [[1.0, -0.5, 1 / 64], [0.0, 0.0, 0.0], [-6.4, 3.2, 0.0]]
    torch.testing.assert_close(rounded, torch.tensor(expected))
    (rounded * torch.arange(9.0).reshape(3, 3)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.arange(9.0).reshape(3, 3))  # straight through


def test_ranges_are_moving_averages_that_hold_zero():
    layer = fake_quantisation._Range(torch.device("cpu"))
    unseen = torch.tensor([0.123456])
    layer.eval()
    assert layer(unseen) is unseen, "nothing is rounded before a range is known"
    layer.train()
    layer(torch.tensor([0.5, 2.0]))
    assert (layer.low.item(), layer.high.item()) == (0.0, 2.0)
    layer(torch.tensor([-1.0, 3.0]))
    assert (layer.low.item(), layer.high.item()) == pytest.approx((-0.1, 2.1))
    layer.eval()
    layer(torch.tensor([9.0]))
    assert layer.high.item() == pytest.approx(2.1)
    step = 2.2 / 255
    inputs = torch.tensor([-5.0, -0.1, 0.0, 1.0, 5.0])
    zero = round(0.1 / step)
    expected = [-zero * step, -zero * step, 0.0, round(1 / step) * step, (255 - zero) * step]
    torch.testing.assert_close(layer(inputs), torch.tensor(expected))


def test_detaching_leaves_the_plain_network(digits):
    model = trained(digits)
    parameters = list(model.parameters())
    classes = [type(module) for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = in_torch(model, digits[0][:10])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    fake_quantisation.attach(model)
    assert list(model.state_dict()) == list(state), "weights may be saved at any time"
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    model.train()
    model(digits[0][:32]).square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    optimizer.step()  # one that was made before learns the same weights
    assert not torch.equal(parameters[0], state[next(iter(state))])

    fake_quantisation.detach(model)
    assert [type(module) for module in model.modules()] == classes
    assert len(list(model.buffers())) == sum(name.rpartition(".")[2] in BUFFERS for name in state)
    model.load_state_dict(state)
    np.testing.assert_array_equal(in_torch(model.eval(), digits[0][:10]), expected)


BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def test_a_network_without_integer_layers_is_refused():
    with pytest.raises(ValueError, match="Sequential has no layer that becomes integer"):
        fake_quantisation.attach(nn.Sequential(nn.Conv3d(1, 2, 3), nn.Linear(2, 2)))
