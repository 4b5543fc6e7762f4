"""What is learned. Each task is a module; `make_task` finds it by the name in the experiment file."""

from __future__ import annotations

from mpinas import config
from mpinas.errors import UserError
from mpinas.tasks.protocol import Samples, Task

NAMES = ("lpbf", "digits")


def make_task(settings: config.Task, seed: int) -> Task:
    """The task that [task] describes; `seed` chooses the validation split.

    Raises
    ------
    UserError
        The name is unknown, or a key does not fit the task.
    """
    match settings.name:
        case "lpbf":
            from mpinas.tasks.lpbf.task import LpbfTask

            return LpbfTask(settings, seed)
        case "digits":
            from mpinas.tasks.digits import DigitsTask

            return DigitsTask(settings, seed)
        case _:
            raise UserError(f"task.name = {settings.name!r} is unknown; known are {', '.join(NAMES)}")


__all__ = ["NAMES", "Samples", "Task", "make_task"]
