"""ONNX files: written by torch's exporter, opened by onnxruntime."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprompt.core.errors import VPromptError
from vprompt.exchange import torch_programs
from vprompt.exchange.whole import Whole

OPSET = 18
_LARGEST = 2**31 - 2**24  # bytes; one message of protobuf holds no more than 2 GiB
_INSTALL = "pip install 'vprompt[onnx]'"


def write(
    whole: Whole, path: Path, facts: dict[str, str], *, opset: int, external_data: bool | None
) -> bool:
    """Write a model whose batch may have any size; say whether the weights stand beside it."""
    _require()
    program = torch_programs.traced(whole)
    try:
        with _quiet():
            made: Any = torch.onnx.export(
                program,
                (whole.example(),),
                dynamo=True,
                opset_version=opset,
                input_names=["pixels" if whole.resizing is not None else "images"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter raises a dozen kinds of errors
        raise VPromptError(
            f"torch cannot write this model as ONNX of opset {opset}: {_first_line(error)}. Try "
            f"another --opset (the usual one is {OPSET}), or --to torch."
        ) from error
    written = made.model.opset_imports.get("")
    if written != opset:  # what the exporter cannot convert it leaves as it was
        raise VPromptError(
            f"torch writes this model as ONNX of opset {written}, and not of {opset}. Use --opset "
            f"{OPSET} or later, or convert the file with onnx.version_converter."
        )
    made.model.metadata_props.update(facts)
    size = sum(value.numel() * value.element_size() for value in whole.state_dict().values())
    beside = size > _LARGEST if external_data is None else external_data
    with _quiet():
        made.save(path, external_data=beside)
    return beside


def opened(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what onnxruntime makes of a file, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise VPromptError(
            f"onnxruntime does not open the model that was written: {_first_line(error)}. It was "
            f"not kept. Try --opset {OPSET}."
        ) from error
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.numpy()})[0])

    return run


def _require() -> None:
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise VPromptError(
            f"An ONNX file is written and checked with {error.name}, which is not installed. Run: "
            f"{_INSTALL}"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the exporter has to say to its own developers away from people."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")[:200]
