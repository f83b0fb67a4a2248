"""Going on with an interrupted run: ``fit(checkpoint="run.safetensors")`` adds this callback, no more."""

import functools
import inspect
import json
import time
import zlib
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from helpers.callbacks import Callback, Run
from helpers.files import CheckpointError, digest, read_safetensors, writable, write_safetensors
from helpers.layers import in_words
from helpers.types import NotNegative, checked, path

CheckpointPath = path(".safetensors")
YOUNGER = {"cutout": 0, "optimizer": "sgd"}  # settings that older files had without saying so
WITHOUT_EFFECT = ("compile", "progress")  # on what is learned
ANY = range(2**64)  # of modules: all may be named
WAY_OUT = "Way out: delete it or name another file."


class Checkpoint(Callback):
    """Write weights, momentum, callbacks' state and history after each epoch; go on from them if there.

    A resumed run ends with the same weights, bit for bit, as one that was never interrupted: on a CPU, with
    the same thread count; on a GPU as far as its kernels are deterministic. The file is there whole or not at
    all, and holds a checksum. Only a run with the same data, settings, loss and callbacks takes it up; the
    weights that such a run began with do not count, since those in the file replace them.

    Args:
        file: a .safetensors file. The first of ``fit``'s callbacks must be this one: the others start from
            it.
        pause: seconds between two files, at least; the last epoch's is always written. A large network on a
            GPU trains an epoch in about the time that its file takes.
    """

    @checked
    def __init__(self, file: CheckpointPath, pause: NotNegative = 0.0) -> None:
        self.file, self.pause = file, pause

    def on_start(self, run: Run) -> None:
        """Take the run to where the file left it.

        Raises:
            ValueError: the file belongs to a run with other settings.
            CheckpointError: it is damaged, or no checkpoint.
        """
        writable(self.file)
        self.others = [callback for callback in run.callbacks if callback is not self]
        self.settings = _settings(run.arguments, self.others)
        if self.file.exists():
            run.history, tensors = self._read()
            run.epoch = len(run.history)
            run.step = run.epoch * run.steps // run.arguments["epochs"]
            self._restore(run, tensors)
        self.written = time.monotonic()

    def on_row(self, run: Run) -> None:
        """Write the file, in one process of several, unless the one before is younger than ``pause``."""
        soon = run.epoch < run.arguments["epochs"] and time.monotonic() < self.written + self.pause
        if not run.main or soon:
            return
        tensors = {f"model/{name}": tensor for name, tensor in run.model.state_dict().items()}
        for index, state in run.optimizer.state_dict()["state"].items():
            tensors |= {
                f"optimizer/{index}/{key}": found for key, found in state.items() if found is not None
            }
        for mark, callback in self._marked():
            tensors |= {f"callback/{mark}/{name}": tensor for name, tensor in callback.state_dict().items()}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        record = json.dumps({"settings": self.settings, "history": run.history})
        write_safetensors(self.file, tensors, {"record": record, "sha256": digest(tensors, record)})
        self.written = time.monotonic()

    def _marked(self) -> Iterator[tuple[str, Callback]]:
        # by kind and number of that kind: others, such as plots, may come and go
        kinds = Counter()
        for callback in self.others:
            kind = type(callback).__name__
            yield f"{kind}{kinds[kind]}", callback
            kinds[kind] += 1

    def _read(self) -> tuple[list[dict], dict[str, Tensor]]:
        metadata, tensors = read_safetensors(self.file)
        text = metadata.get("record", "")
        if text and metadata.get("sha256") != digest(tensors, text):
            raise CheckpointError(f"{self.file} is altered: it does not match its checksum. {WAY_OUT}")
        try:
            record = json.loads(text)
            found, history = YOUNGER | record["settings"], [dict(row) for row in record["history"]]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.file} is not a checkpoint of fit ({error}). {WAY_OUT}") from error
        other = ", ".join(
            f"{key} {found.get(key)!r} (now {self.settings.get(key)!r})"
            for key in self.settings | found
            if found.get(key) != self.settings.get(key)
        )
        if other:
            raise ValueError(f"checkpoint {self.file} belongs to a run with {other}. {WAY_OUT}")
        return history, tensors

    def _restore(self, run: Run, tensors: dict[str, Tensor]) -> None:
        def under(prefix: str) -> dict[str, Tensor]:
            found = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            return {name.removeprefix(prefix): tensor.clone() for name, tensor in found.items()}

        weights = [weight for group in run.optimizer.param_groups for weight in group["params"]]
        try:
            run.model.load_state_dict(under("model/"))
            for name, tensor in under("optimizer/").items():
                index, key = name.split("/", 1)
                weight = weights[int(index)]
                # in the weight's order of memory, too: sums in another order differ by rounding
                run.optimizer.state[weight][key] = torch.empty_like(weight).copy_(tensor)
            for index, (mark, callback) in enumerate(self._marked()):
                state = under(f"callback/{mark}/") or under(f"callback/{index}/")  # as older files have it
                callback.load_state_dict(state)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.file} holds another run's tensors ({error}). {WAY_OUT}") from error


def _settings(arguments: dict, callbacks: list[Callback]) -> dict:
    """Say what a run trains, on what, how, in words and numbers."""
    model, data, loss = arguments["model"], arguments["data"], arguments["loss"]
    plain = {name: value for name, value in arguments.items() if isinstance(value, (int, float, str))}
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    sums = [zlib.crc32(part.cpu().contiguous().numpy()) for part in (data.train.images, data.train.labels)]
    return {name: value for name, value in plain.items() if name not in WITHOUT_EFFECT} | {
        "data": [data.name, len(data.train), *sums],
        "model": zlib.crc32(json.dumps(shapes).encode()),
        "loss": "" if loss is None else _described(loss),
        "callbacks": [f"{type(one).__name__}({one.extra_repr()})" for one in callbacks if one.extra_repr()],
    }


def _described(loss: object) -> str:
    """Say what a loss is and depends on: attributes or what it encloses, and weights, such as a teacher's."""
    plain = {name: value for name, value in getattr(loss, "__dict__", {}).items() if name[0] != "_"}
    plain.pop("training", None)
    if inspect.ismethod(loss):
        plain = {"of": loss.__self__}
    elif inspect.isfunction(loss):
        held = {"defaults": loss.__defaults__} if loss.__defaults__ else {}
        plain = inspect.getclosurevars(loss).nonlocals | held
    elif isinstance(loss, functools.partial):
        plain = (
            {"of": loss.func} | {str(place): given for place, given in enumerate(loss.args)} | loss.keywords
        )
    parts = [f"{name}={_held(name, value)}" for name, value in plain.items()]
    if weights := loss.state_dict() if isinstance(loss, nn.Module) else {}:
        mark = digest({name: tensor.detach().cpu() for name, tensor in weights.items()})[:10]
        parts.append(f"weights {mark}")
    return f"{getattr(loss, '__qualname__', type(loss).__name__)}({', '.join(parts)})"


def _held(name: str, value: object) -> str:
    return _described(value) if isinstance(value, nn.Module) else in_words(name, value, ANY)
