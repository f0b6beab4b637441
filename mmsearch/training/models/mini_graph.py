"""From the image tower of `mini` in torch to the graph that onnxruntime runs: see ``indexer.encoders.mini_onnx``.

``python -m mmsearch.training.models.mini_graph`` writes it where the package has it. The graph holds no weights but
names them, as ``image.safetensors`` does: it serves every run of ``mmsearch train dual``, and changes only with the
architecture.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from indexer.encoders.mini import IMAGE, IMAGE_SIZE
from indexer.encoders.mini_onnx import GRAPH, INPUT, OUTPUTS
from indexer.encoders.mini_torch import WORD_SIZE, ImageTower
from mmsearch.rerank.export import OPSET, check_exportable

if TYPE_CHECKING:
    import onnx


def write_graph(path: Path) -> None:
    """Write the graph: uint8 ``(B, 3, 260, 260)`` to what ``ImageTower.with_patches`` gives.

    Raises:
        UsageError: onnx is not installed.
    """
    check_exportable()
    import onnx

    tower = ImageTower(torch.zeros(1000, WORD_SIZE)).eval()
    for tensor in tower.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()  # of weights that are equal, as ones and zeros are, the exporter makes one
    pixels = torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    _fix_padding(tower, pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, but the other exporter needs a package more; slices stay
        torch.onnx.export(
            _Exported(tower).eval(),
            (pixels,),
            str(path),
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # batch normalisation stays, with its weights: they are named
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "B"} for name in (INPUT, *OUTPUTS)},
        )
    model = onnx.load(path)
    _name_as_the_file(model)
    _strip_weights(model)
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    onnx.save(model, path)


class _Exported(nn.Module):
    """``ImageTower.with_patches`` as a module's forward."""

    def __init__(self, tower: ImageTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.tower.with_patches(pixels)


class _Padded(nn.Module):
    """A ``Conv2dSame`` of pictures of one size: its padding is four numbers and no arithmetic of the graph."""

    def __init__(self, conv: Conv2dSame, size: tuple[int, int]) -> None:
        super().__init__()
        down, across = (
            get_same_padding(*of) for of in zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
        )
        self.pad = nn.ZeroPad2d((across // 2, across - across // 2, down // 2, down - down // 2))
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self.conv, self.pad(x))


def _fix_padding(tower: ImageTower, pixels: Tensor) -> None:
    """Replace each convolution that pads by the size of what it is given."""
    same = {name: module for name, module in tower.named_modules() if isinstance(module, Conv2dSame)}
    sizes: dict[nn.Module, tuple[int, int]] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes[module] = (given[0].shape[2], given[0].shape[3])

    hooks = [module.register_forward_pre_hook(note) for module in same.values()]
    tower(pixels)
    for hook in hooks:
        hook.remove()
    for name, module in same.items():
        parent, _, last = name.rpartition(".")
        setattr(tower.get_submodule(parent), last, _Padded(module, sizes[module]))


def _name_as_the_file(model: onnx.ModelProto) -> None:
    """Call each weight what ``image.safetensors`` calls it, not what the modules above it are called."""
    graph = model.graph
    names = {
        one.name: one.name.removeprefix("tower.").removeprefix("net.").replace(".conv.weight", ".weight")
        for one in graph.initializer
    }
    names |= {name: short.removeprefix("net.") for name, short in names.items()}
    for initializer in graph.initializer:
        initializer.name = names[initializer.name]
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _strip_weights(model: onnx.ModelProto) -> None:
    """Leave of each weight its name and shape."""
    from onnx import TensorProto

    for initializer in model.graph.initializer:
        initializer.ClearField("raw_data")
        initializer.data_location = TensorProto.EXTERNAL
        initializer.external_data.add(key="location", value=IMAGE)


if __name__ == "__main__":
    write_graph(GRAPH)
