"""Time one training step of a network in PyTorch: the same layers, loss, optimizer and batch.

Run by an interpreter that has torch, which is no dependency of the project. NETWORK is the JSON
that tools/benchmark/pieces.py writes of the project's own step. Appends images a second in each
memory format to RECORD, and the number of trainable values, by which the two networks are known to
be the same.

    python tools/benchmark/torch_step.py NETWORK RECORD
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]
from torch import nn


def network(layers: list[dict[str, Any]]) -> Any:
    """Return the chain of `layers`, each the name of Keras's class and what of it matters."""
    modules: list[Any] = []
    flat = False
    for layer in layers:
        match layer["kind"]:
            case "Conv2D":
                settings = {name: layer[name] for name in ("stride", "padding", "bias")}
                modules.append(nn.LazyConv2d(layer["filters"], layer["width"], **settings))
            case "Cropping2D":
                (top, bottom), (left, right) = layer["crop"]
                modules.append(nn.ZeroPad2d((-left, -right, -top, -bottom)))
            case "MaxPooling2D":
                modules.append(nn.MaxPool2d(layer["width"]))
            case "BatchNormalization":
                kind = nn.LazyBatchNorm1d if flat else nn.LazyBatchNorm2d
                modules.append(kind(eps=layer["epsilon"], momentum=1 - layer["momentum"]))
            case "ReLU":
                modules.append(nn.ReLU())
            case "Dropout":
                modules.append(nn.Dropout(layer["rate"]))
            case "Flatten":
                modules.append(nn.Flatten())
                flat = True
            case "Dense":  # the last one's softmax is part of PyTorch's loss
                modules.append(nn.LazyLinear(layer["units"], bias=layer["bias"]))
            case "InputLayer" | "Reshape":
                pass
            case other:
                sys.exit(f"error: {other} has no translation to PyTorch here")
    return nn.Sequential(*modules)


def measure(description: dict[str, Any], memory_format: Any) -> dict[str, float]:
    """Return the median of images a second, and the trainable values, in one memory format."""
    torch.manual_seed(0)
    batch = description["batch_size"]
    images = torch.rand(batch, 1, *description["shape"]).contiguous(memory_format=memory_format)
    labels = torch.randint(0, description["classes"], (batch,))
    model = network(description["layers"])
    model(images)  # lets the layers see the shapes
    model = model.to(memory_format=memory_format).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=description["learning_rate"])

    def steps() -> float:
        start = time.perf_counter()
        for _ in range(description["steps"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return time.perf_counter() - start

    steps()  # warm
    seconds = statistics.median(steps() for _ in range(description["repeats"]))
    return {
        "images_a_second": batch * description["steps"] / seconds,
        "trainable": sum(values.numel() for values in model.parameters()),
    }


def main() -> None:
    """Time both memory formats."""
    description = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(description["threads"])
    formats = {"default": torch.contiguous_format, "channels_last": torch.channels_last}
    with Path(sys.argv[2]).open("a", encoding="utf-8") as file:
        for name, memory_format in formats.items():
            result = measure(description, memory_format)
            line = {"name": name, "version": torch.__version__, **result}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
