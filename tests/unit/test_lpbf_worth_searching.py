"""The simulated problem is worth a search: shape beats brightness, and time tells what one frame cannot.

Trains two small networks for a few epochs; about twenty seconds on one idle core.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from torch import nn

from mpinas.tasks.lpbf.recording import open_recording
from mpinas.tasks.lpbf.simulate import SimulationPlan, simulate
from mpinas.tasks.lpbf.split import split_layers
from mpinas.tasks.lpbf.targets import PUBLISHED, normalised
from mpinas.tasks.lpbf.windows import extract

FRAMES = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(windows, targets) of training and of validation layers, about 500 and 160 lines."""
    plan = SimulationPlan(objects=("S001", "S002"), layers=13, lines_per_layer=26, seed=0)
    (file,) = simulate(tmp_path_factory.mktemp("simulated") / "train.hdf5", plan)
    with open_recording(file, need_labels=True) as recording:
        split = split_layers(recording.lines, 0.24, seed=0)
        sides = [extract(recording, lines, FRAMES) for lines in (split.training, split.validation)]
    return [(side.frames, normalised(side.labels, PUBLISHED.targets)) for side in sides]


def error(predicted, targets):
    return float(np.sqrt(np.mean((predicted - targets) ** 2)))


def brightness(windows):
    """Mean, deviation, maximum, saturated share, quantiles, flicker: [windows, features]."""
    flat = windows.reshape(*windows.shape[:2], -1).astype(np.float32)  # [windows, frames, pixels]
    features = [flat.mean((1, 2)), flat.std((1, 2)), flat.max(2).mean(1), (flat >= 250).mean((1, 2))]
    features.append(flat.mean(2).std(1))
    quantiles = np.quantile(flat.reshape(len(flat), -1), [0.5, 0.75, 0.9, 0.95, 0.99], axis=1)
    found = np.concatenate([np.stack(features), quantiles]).T
    return (found - found.mean(0)) / (found.std(0) + 1e-6)


def network(frames, width=12):
    """Three convolutions with strides; kernels in time only where there is time."""
    time = 3 if frames > 1 else 1
    layers, channels = [], 1
    for step, out in enumerate((width, 2 * width, 4 * width)):
        stride = (2 if step and frames > 1 else 1, 2, 2)
        layers += [
            nn.Conv3d(channels, out, (time, 3, 3), stride, (time // 2, 1, 1), bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(),
        ]
        channels = out
    head = [
        nn.AdaptiveAvgPool3d((1, 6, 6)),
        nn.Flatten(),
        nn.Linear(36 * channels, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
    ]
    return nn.Sequential(*layers, *head)


def trained_error(training, validation, epochs=10):
    (windows, targets), (held_out, wanted) = training, validation
    torch.manual_seed(0)
    net = network(windows.shape[1])
    inputs = torch.from_numpy(windows[:, None]).float() / 255  # [lines, 1, frames, 41, 41]
    labels = torch.from_numpy(targets)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=epochs * -(-len(inputs) // 16))
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs)).split(16):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(inputs[batch]), labels[batch]).backward()
            optimiser.step()
            schedule.step()
    net.eval()
    with torch.no_grad():
        return error(net(torch.from_numpy(held_out[:, None]).float() / 255).numpy(), wanted)


@pytest.fixture(autouse=True)
def one_thread():
    """Two threads that wait for each other on busy cores take ten times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.timeout(300)
def test_the_simulated_problem_is_worth_searching(data):
    (windows, targets), (held_out, wanted) = data
    mean = error(targets.mean(axis=0), wanted)
    model = RidgeCV(np.logspace(-4, 3, 20)).fit(brightness(windows), targets)
    linear = error(model.predict(brightness(held_out)), wanted)
    middle = slice(FRAMES // 2, FRAMES // 2 + 1)
    one = trained_error((windows[:, middle], targets), (held_out[:, middle], wanted))
    many = trained_error((windows, targets), (held_out, wanted))
    print(f"mean {mean:.3f}, linear {linear:.3f}, one frame {one:.3f}, {FRAMES} frames {many:.3f}")
    assert mean > 0.35
    assert linear > 1.4 * many
    assert one > 1.15 * many
