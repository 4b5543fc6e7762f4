"""What is learned: data, loss and metrics. `make_task` finds a task by its name in the experiment file."""

from __future__ import annotations

from collections.abc import Iterable

from mpinas import config, plugins
from mpinas.errors import UserError
from mpinas.tasks.protocol import Samples, Task

_NEEDED = ("name", "input_shape", "outputs", "device_metric", "baseline", "metadata", "simulated", "load", "load_test",
           "loss", "sums", "metrics")  # fmt: skip


def make_task(settings: config.Task, seed: int) -> Task:
    """The task that [task] describes; `seed` chooses the validation split.

    Raises
    ------
    UserError
        The name is unknown, a key does not fit the task, or what a plug-in gives is no task.
    """
    make = plugins.find("tasks", settings.name, "task.name")
    try:
        task: Task = make(settings, seed)
    except UserError:
        raise
    except Exception as error:  # a user's code
        raise UserError(f"task.name = {settings.name!r} cannot be made: {plugins.in_one_line(error)}") from error
    # `simulated` may open files: its name is enough
    if missing := [each for each in _NEEDED if each not in dir(task)]:
        raise UserError(f"task.name = {settings.name!r} has no {missing[0]!r}: see docs/extending.md")
    names = getattr(task, "option_names", settings.options)
    if unknown := [key for key in settings.options if key not in names]:
        raise UserError(f"task.options.{unknown[0]}: the task {settings.name} has {_listed(names)}")
    sizes = (*task.input_shape, task.outputs)
    if len(sizes) != 4 or not all(type(each) is int and each > 0 for each in sizes):
        raise UserError(
            f"task.name = {settings.name!r}: input_shape = {task.input_shape!r} and outputs = {task.outputs!r} must be "
            "three whole numbers (frames, height, width) and one"
        )
    return task


def _listed(names: Iterable[str]) -> str:
    return f"the options {', '.join(names)}" if list(names) else "no options"


__all__ = ["Samples", "Task", "make_task"]
