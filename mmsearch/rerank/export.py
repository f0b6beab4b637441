"""From the fusion model in torch to the folder from which queries run it: see ``mmsearch.rerank.fusion_onnx``."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from indexer.errors import ModelError, UsageError
from indexer.tokens import TokenFormat
from mmsearch.rerank.bank import QueryBank
from mmsearch.rerank.folder import CALIBRATION, CONFIG
from mmsearch.rerank.fusion import Compressor, Fusion
from mmsearch.rerank.fusion_numpy import FUSION
from mmsearch.rerank.fusion_onnx import (
    ARCHITECTURE,
    BANK,
    COMPRESSOR,
    INPUTS,
    MODEL,
    OUTPUTS,
    WEIGHTS,
    FusionCompressor,
    FusionReranker,
    open_network,
)

OPSET = 17
LARGEST = 5_000_000
"""Bytes of weights in float32 up to which they are stored so; of more, float16 is stored."""
SMALL = 256
"""Numbers of a tensor that is not worth storing short."""
TOLERANCE = 1e-4
"""By which what the folder computes may differ from what torch does."""
AXES = {
    "words": {0: "C", 1: "L"},
    "mask": {0: "C", 1: "L"},
    "tokens": {0: "I"},
    "text": {0: "K"},
    "picture": {0: "K"},
    "logits": {0: "K"},
    "attention": {0: "K", 1: "L"},
    "weights": {0: "K", 1: "L"},
}


def check_exportable() -> None:
    """Raise UsageError unless what writes a network as a graph is installed."""
    if importlib.util.find_spec("onnx") is None:
        raise UsageError("a network is exported with onnx, which is not installed; pip install 'mmsearch[train]'")


def export(
    folder: Path,
    compressor: Compressor,
    fusion: Fusion,
    *,
    name: str,
    encoder: str,
    candidates: int,
    calibration: Mapping[str, Mapping[str, float]],
    bank: QueryBank | None = None,
) -> Path:
    """Write the files of a reranker into ``folder``: ``config.json`` last, when they compute what torch does.

    Args:
        name: what the reranker is called.
        encoder: the fingerprint of the encoder whose patches and states it reads.
        candidates: how many of the first answers are worth its time.
        calibration: as ``mmsearch.calibration.read_fused`` reads it, for both directions.
        bank: what ``calibration`` was fitted with.

    Returns:
        ``folder``.

    Raises:
        UsageError: the tokens would take more room than an index gives them, or onnx is not installed and the fusion
            is of a kind that NumPy does not run.
        ModelError: what was written computes something else.
    """
    shape = fusion.shape
    if shape.fusion != FUSION:
        check_exportable()
    compressor, fusion = compressor.cpu().eval(), fusion.cpu().eval()
    large = 4 * sum(parameter.numel() for parameter in fusion.parameters()) > LARGEST
    if large:
        fusion = _rounded(fusion)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    weights = {key: tensor.detach().float().contiguous() for key, tensor in compressor.state_dict().items()}
    save_file(weights, folder / COMPRESSOR)
    network = _write_network(folder, fusion, short=large)
    fingerprint = _digest(encoder.encode(), (folder / COMPRESSOR).read_bytes())
    format = TokenFormat(name, fingerprint, shape.side**2, shape.width)
    numpy_side = FusionCompressor(
        format, encoder, {key: tensor.numpy() for key, tensor in weights.items()}, shape.grid, shape.side
    )
    _check(compressor, fusion, numpy_side, open_network(folder, format))
    (folder / BANK).unlink(missing_ok=True)
    if bank is not None:
        bank.save(folder / BANK)
    (folder / CALIBRATION).write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    config = {
        "architecture": ARCHITECTURE,
        "name": name,
        "encoder": encoder,
        "fingerprint": _digest(fingerprint.encode(), network.read_bytes()),
        "tokens": {"count": format.count, "width": format.width, "fingerprint": fingerprint},
        "grid": shape.grid,
        "side": shape.side,
        "state_size": shape.state_size,
        "candidates": candidates,
        "fusion": shape.fusion,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder


def copy_reranker(run: Path, out: Path) -> None:
    """Copy what a run's folder holds of a reranker into ``out``, without its features and logs.

    Raises:
        ModelError: there is no reranker in ``run``, or a damaged one.
    """
    reranker = FusionReranker(run)
    assert reranker.compressor is not None and reranker.network is not None  # refuses what is no model
    out.mkdir(parents=True, exist_ok=True)
    for name in (COMPRESSOR, WEIGHTS, MODEL, BANK, CALIBRATION, CONFIG):
        if (run / name).exists():
            shutil.copyfile(run / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)  # of another reranker, which lay there before


def _write_network(folder: Path, fusion: Fusion, *, short: bool) -> Path:
    """Write the joint encoder, with weights in float16 if they shall be ``short``, and return its file."""
    for name in (WEIGHTS, MODEL):
        (folder / name).unlink(missing_ok=True)  # an earlier export may have been of another kind
    if fusion.shape.fusion == FUSION:
        kind = torch.float16 if short else torch.float32
        weights = {key: tensor.detach().to(kind).contiguous() for key, tensor in fusion.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        return folder / WEIGHTS
    _write_onnx(folder / MODEL, fusion)
    if short:
        _store_short(folder / MODEL)
    return folder / MODEL


class _Exported(nn.Module):
    """``Fusion.pairs`` with a plain tuple, as the exporter wants it."""

    def __init__(self, fusion: Fusion) -> None:
        super().__init__()
        self.fusion = fusion

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.fusion(*inputs))


def _write_onnx(path: Path, fusion: Fusion) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the other exporter needs a package more
        torch.onnx.export(
            _Exported(fusion).eval(),  # as it is found it is left, and with it the model inside
            _example(fusion),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_axes=AXES,
        )


def _rounded(fusion: Fusion) -> Fusion:
    """The model with weights that float16 holds."""
    rounded = Fusion(fusion.shape).eval()
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in fusion.state_dict().items()})
    return rounded


def _store_short(path: Path) -> None:
    """Store what float16 holds exactly in float16; it is widened when the file is loaded, and nothing changes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    for number, tensor in enumerate(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        wide = numpy_helper.to_array(tensor)
        short = wide.astype(np.float16)
        if wide.size >= SMALL and np.array_equal(short.astype(np.float32), wide):
            graph.node.insert(
                0, helper.make_node("Cast", [f"{tensor.name}.short"], [tensor.name], to=TensorProto.FLOAT)
            )
            graph.initializer[number].CopyFrom(numpy_helper.from_array(short, f"{tensor.name}.short"))
    onnx.save(model, path)


def _example(fusion: Fusion, texts: int = 3, words: int = 5, pictures: int = 2) -> tuple[Tensor, ...]:
    """Inputs of ``Fusion.pairs``: every text with every picture; the second text is shorter than the others."""
    shape = fusion.shape
    random = torch.Generator().manual_seed(0)
    mask = torch.ones(texts, words)
    mask[1, words // 2 :] = 0
    return (
        torch.randn(texts, words, shape.state_size, generator=random),
        mask,
        torch.randn(pictures, shape.side**2, shape.width, generator=random),
        torch.arange(texts).repeat_interleave(pictures),
        torch.arange(pictures).repeat(texts),
    )


@torch.inference_mode()
def _check(compressor: Compressor, fusion: Fusion, numpy_side: FusionCompressor, network: Any) -> None:
    """Raise ModelError unless the files compute what torch does, on inputs of other sizes than the export saw."""
    shape = fusion.shape
    patches = torch.randn(2, shape.grid**2, shape.patch_size, generator=torch.Generator().manual_seed(1))
    _compare("tokens", numpy_side.compress(patches.numpy()), compressor(patches), TOLERANCE)
    inputs = _example(fusion, texts=4, words=9, pictures=3)
    found = network.run(list(OUTPUTS), {key: value.numpy() for key, value in zip(INPUTS, inputs, strict=True)})
    for output, one, other in zip(OUTPUTS, found, fusion(*inputs), strict=True):
        _compare(output, one, other, TOLERANCE)


def _compare(what: str, found: np.ndarray, expected: Tensor, tolerance: float) -> None:
    wanted = expected.numpy()
    worst = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    if not worst <= tolerance * max(1.0, float(np.abs(wanted).max())):
        raise ModelError(
            f"the exported {what} differ from those of torch by {worst:.2g}, {tolerance:g} is allowed; the installed "
            "versions of torch, onnx and onnxruntime do not go together"
        )


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
