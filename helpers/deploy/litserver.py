"""Lesson 05's server with LitServe: ``python -m helpers.deploy.litserver FOLDER`` answers on 127.0.0.1.

FOLDER holds ``small.onnx``, which classifies, and ``small.mar``, whose settings say the classes and how
pictures are read. A request is ``{"picture": a PNG or JPEG file in base64}``.
"""

import argparse
import base64
import json
import zipfile
from pathlib import Path

import litserve
import numpy as np
import torch

from helpers.deploy import handler, runtimes


class Classifier(litserve.LitAPI):
    """Pictures in, a class each out; a picture that cannot be read gets a reason instead.

    Args:
        folder: of ``small.onnx`` and ``small.mar``.
        max_batch_size: requests answered at a time.
        batch_timeout: how many seconds to wait for so many.
    """

    def __init__(self, folder: Path, max_batch_size: int = 16, batch_timeout: float = 0.01) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout)
        self.folder = folder

    def setup(self, device: str) -> None:
        """Open the network, in the process that answers."""
        self.run = runtimes.onnx_session(self.folder / "small.onnx", threads=1)
        with zipfile.ZipFile(self.folder / "small.mar") as archive:
            self.settings = json.loads(archive.read("settings.json"))  # classes, size, mean, std
        self.reader = handler.PictureHandler()
        self.reader.configure(self.settings)

    def decode_request(self, request: dict) -> torch.Tensor | str:
        """Read a picture, or say why not."""
        try:
            return self.reader.read(base64.b64decode(request["picture"]))
        except Exception as error:  # raised further, it would fail everybody's request in the batch
            return getattr(error, "reason", "send {'picture': a PNG or JPEG file in base64}")

    def batch(self, pictures: list) -> list:
        """Keep a list: among the tensors there may be reasons for a refusal."""
        return pictures

    def predict(self, pictures: list) -> list:
        """Classify what could be read, all at once, and hand the reasons through."""
        good = [each for each in pictures if isinstance(each, torch.Tensor)]
        logits = iter(self.run(torch.stack(good).numpy()) if good else [])
        return [next(logits) if isinstance(each, torch.Tensor) else each for each in pictures]

    def encode_response(self, answer: np.ndarray | str) -> dict:
        """Name the class, or the reason."""
        if isinstance(answer, str):
            return {"error": answer}
        return {"class": self.settings["classes"][answer.argmax()]}


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    server = litserve.LitServer(Classifier(given.folder), accelerator="cpu", max_payload_size=3_000_000)
    server.run(host="127.0.0.1", port=given.port, num_api_servers=1, generate_client_file=False)


if __name__ == "__main__":
    main()
