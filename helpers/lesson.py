"""What a notebook's set-up cell calls: the data, the budget, the look of the figures, and the teacher."""

import io
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from helpers import distillation, models, plotting
from helpers.data import HOME, Data, load_data
from helpers.files import CheckpointError, fingerprint, keep
from helpers.training import fit
from helpers.types import Seed, checked

T = TypeVar("T")
Budget = Literal["brief", "quick", "full"]
TEACHER = HOME / "data" / "checkpoints" / "vgg19.safetensors"
ANSWERS = TEACHER.with_name("vgg19_answers.npz")  # its logits for the training pictures, by maintain.answers
FAST = {  # how ``fit`` trains the small network of the live cells
    "optimizer": "muon",
    "lr": 0.2,
    "momentum": 0.6,
    "batch_size": 500,
    "schedule": "one_cycle",
    "warmup": 0.02,
}
BUILD = Path(os.environ.get("NNC_BUILD") or HOME / "build")


@checked
@dataclass(frozen=True)
class Lesson:
    """What every notebook starts from.

    Attributes:
        budget: "quick" (a laptop, minutes) or "full" (far longer, on a GPU); "brief" is as long as on digits,
            whatever the pictures: to test a lesson.
        data: CIFAR-10, or digits where it cannot be had.
    """

    budget: Budget
    data: Data

    @checked
    def pick(self, *, digits: T, quick: T, full: T) -> T:
        """Return the value for this data set and budget; digits is the same in all."""
        budget = "brief" if self.data.name == "digits" else self.budget
        return {"brief": digits, "quick": quick, "full": full}[budget]

    @checked
    def publish(self, figure: Figure, name: str) -> None:
        """On CIFAR-10, write a figure to the folder that the variable ``NNC_PUBLISH`` names, if it is set."""
        if not name.isidentifier():
            raise ValueError(f"name must be letters, digits and underscores, got {name!r}")
        folder = os.environ.get("NNC_PUBLISH")
        if self.data.name == "cifar10" and folder:
            drawn, small = io.BytesIO(), io.BytesIO()
            figure.savefig(drawn, format="png")
            few = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            few.save(small, format="png", optimize=True)  # 256 colours: a third of the bytes
            keep(Path(folder) / f"{name}.png", small.getvalue())

    @checked
    def student(self, seed: Seed = 0) -> nn.Module:
        """Return the small network of the live cells, untrained; ``fit`` needs two epochs with ``**FAST``."""
        torch.manual_seed(seed)
        return models.whiten(models.build("fast_convnet"), self.data.train)

    def answers(self) -> Tensor:
        """Return the teacher's logits for the training pictures, for ``distillation.answered``: N x V x C."""
        if self.data.name != "cifar10":
            return distillation.record(self.teacher(), self.data.train)
        with np.load(ANSWERS, allow_pickle=False) as found:
            if found["teacher"] != fingerprint(TEACHER):
                raise CheckpointError(
                    f"{ANSWERS} holds another teacher's answers: run helpers.maintain.answers"
                )
            low, high = found["range"]
            steps = torch.from_numpy(found["steps"][: len(self.data.train)])
            return steps.float() * ((high - low) / 255) + low

    def teacher(self) -> nn.Module:
        """Return the series' baseline, in eval mode: the VGG-19 in data/checkpoints, trained on CIFAR-10.

        Without CIFAR-10, a VGG-19 an eighth as wide is trained on digits instead, once, and kept in build/,
        or in the folder that the environment variable ``NNC_BUILD`` names. Where that cannot be written it is
        trained each time.
        """
        if self.data.name == "cifar10":
            return models.load(TEACHER)
        file = BUILD / "vgg19_digits.safetensors"
        torch.manual_seed(0)
        try:
            return models.load(file)
        except CheckpointError:  # not there yet, or damaged
            model = models.build("vgg19", width=0.125)
            fit(model, self.data, epochs=20, batch_size=64, progress=False)
            try:
                models.save(model.eval(), file)
            except OSError as error:
                print(f"{error}. The teacher is not kept. Way out: let NNC_BUILD name a folder to write to.")
                return model
            return self.teacher()


@checked
def open_lesson(budget: Budget = "quick") -> Lesson:
    """Set a notebook up: seed, figures, data; print what it will run on.

    Args:
        budget: the environment variable ``NNC_BUDGET`` overrides it, ``NNC_DATA`` the data set;
            ``NNC_PICTURES`` leaves each split's first pictures alone, as many as it says: to test a lesson.
    """
    torch.manual_seed(0)
    plotting.theme()
    data = load_data(os.environ.get("NNC_DATA") or "auto")
    if few := os.environ.get("NNC_PICTURES"):
        first, parts = slice(0, int(few)), ("train", "validation", "test")
        data = replace(data, **{part: getattr(data, part).take(first) for part in parts})
    lesson = Lesson(os.environ.get("NNC_BUDGET") or budget, data)
    gpu = torch.accelerator.current_accelerator(check_available=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else gpu.type.upper() if gpu else "CPU"
    print(f"{data}\nbudget {lesson.budget}, on {name}, {torch.get_num_threads()} threads")
    return lesson
