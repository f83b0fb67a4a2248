"""What TorchServe runs for our networks: pictures in, a class and its probability out.

It stands alone, for it goes into the .mar file.

A request is one picture, PNG or JPEG, as the raw body or as a form field named ``data`` or ``body``.
TorchServe hands over several requests at a time; each is answered for itself, so a broken picture gets its
own error and the others their class.
"""

import io
import json
import os
import warnings

import torch
from PIL import Image, ImageOps

MAX_BYTES = 2_000_000  # of one picture's file
MAX_PIXELS = 4_000_000  # of one picture: a small file can claim to unpack into gigabytes
MAX_BATCH = 64  # requests answered at a time


class PictureHandler:
    """Classifies pictures with a TorchScript network.

    ``settings.json`` has the classes, mean, std, and size, [height, width].
    """

    class Refused(Exception):  # inside, for TorchServe wants one class in the file
        """A request that is not answered: an HTTP status and the reason, which the sender is told."""

        def __init__(self, status: int, reason: str) -> None:
            super().__init__(reason)
            self.status, self.reason = status, reason

    def initialize(self, context: object) -> None:
        """Load the network and its settings from the folder that TorchServe has unpacked."""
        folder = context.system_properties["model_dir"]
        with open(os.path.join(folder, "settings.json"), encoding="utf-8") as file:
            self.configure(json.load(file))
        self.model = torch.jit.load(os.path.join(folder, "model.pt"), map_location="cpu").eval()

    def configure(self, settings: dict) -> None:
        """Take the settings: size, mean and std, which ``read`` needs, and the classes."""
        self.settings = settings
        self.mean, self.std = (torch.tensor(settings[name]).view(3, 1, 1) for name in ("mean", "std"))

    def handle(self, requests: list, context: object) -> list:
        """Answer a batch of requests.

        Args:
            requests: a dict each, with the picture's bytes under "data" or "body".
            context: TorchServe's; takes the status of each answer.

        Returns:
            For each request a dict: class, label (its number) and probability (in [0, 1]); or error.
        """
        answers, pictures, places = [None] * len(requests), [], []
        for place, request in enumerate(requests):
            try:
                if place >= MAX_BATCH:
                    raise self.Refused(503, f"more than {MAX_BATCH} pictures at a time; send it again")
                pictures.append(self.read(request.get("data") or request.get("body")))
                places.append(place)
            except self.Refused as refused:
                context.set_response_status(code=refused.status, phrase=refused.reason, idx=place)
                answers[place] = {"error": refused.reason}
        if pictures:
            with torch.inference_mode():
                probabilities = self.model(torch.stack(pictures)).softmax(1)
            for place, (probability, label) in zip(places, zip(*(t.tolist() for t in probabilities.max(1)))):  # noqa: B905
                answers[place] = {
                    "class": self.settings["classes"][label],
                    "label": label,
                    "probability": probability,
                }
        return answers

    def read(self, data: object) -> torch.Tensor:
        """Decode one PNG or JPEG into a normalised picture, 3 x H x W.

        One of another size is resized until it covers H x W, and cropped around its middle: never squashed.

        Raises:
            Refused: 400, it is no such picture; 413, it is too large.
        """
        if not isinstance(data, (bytes, bytearray)) or not data:
            raise self.Refused(400, "the body must be a PNG or JPEG file")
        if len(data) > MAX_BYTES:
            raise self.Refused(413, f"the file has {len(data):,} bytes; allowed are {MAX_BYTES:,}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                raise self.Refused(
                    413, f"the picture has {image.width} x {image.height} pixels; allowed are {MAX_PIXELS:,}"
                )
            height, width = self.settings["size"]
            image = ImageOps.exif_transpose(image)  # as its camera held it
            if image.mode.startswith("I"):  # 16 bits of grey, which convert would cut off at 255
                image = image.point(lambda value: value / 257).convert("L")
            image = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.BILINEAR)
        except self.Refused:
            raise
        except Image.DecompressionBombError:
            raise self.Refused(413, f"the picture has too many pixels; allowed are {MAX_PIXELS:,}") from None
        except (
            Exception
        ) as error:  # a damaged file makes Pillow raise nearly anything; the others want answers
            raise self.Refused(
                400, f"the body is not a PNG or JPEG file that can be read ({type(error).__name__})"
            ) from None
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
        return (pixels.permute(2, 0, 1).float() / 255 - self.mean) / self.std
