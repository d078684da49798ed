"""ONNX files: of standard operators, with names and metadata, whole or not at all."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import fadeup
from fadeup.checkpoint import write
from fadeup.export.agreement import Comparison, Timing, compared, needed_for_onnx, open_session, other_inputs, timed
from fadeup.export.program import checked, export_program, first_lines

OPSET = 18
LARGEST_FILE = 2**31 - 1  # what protobuf holds
DESCRIBED = ("task", "upsampler", "classes", "palette", "mean", "std", "scores", "recipe", "seed", "parameters")
"""What a file says of a trained network, of that which its weights say."""


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares."""

    path: Path
    file_bytes: int
    weights_bytes: int
    """Of PyTorch's parameters and buffers."""
    opset: int
    operators: dict[str, int]
    """How often each is used, all of them of the standard domain."""
    inputs: dict[str, list[str | int]]
    """Name to axes: a number, or a name where any size is taken."""
    outputs: dict[str, list[str | int]]
    comparisons: tuple[Comparison, ...]
    """Empty where nothing was compared."""
    threads: int
    onnxruntime: Timing | None
    """Of a call with the example, a single one of its batch; None where it was not timed."""
    pytorch: Timing | None

    @property
    def difference(self) -> float:
        """The largest of all comparisons; NaN where there are none."""
        return max((one.difference for one in self.comparisons), default=float("nan"))


def export_onnx(
    model: nn.Module,
    example: Sequence[Tensor],
    path: str | Path,
    *,
    opset: int = OPSET,
    dynamic: bool = True,
    others: Sequence[Sequence[Tensor]] | None = None,
    check: bool = True,
    seconds: float = 0.0,
    overwrite: bool = False,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ExportReport:
    """Write a model as ONNX of standard operators, whole or not at all, once onnxruntime agrees with PyTorch.

    Args:
        model: Takes tensors, gives tensors, or a container of them. Exported in evaluation mode, and left as it was.
        example: Its inputs, float32 maps `(B, C, H, W)` for the most part.
        path: Of the file; its folder must be there.
        opset: Of ONNX, 18 or more.
        dynamic: Take every batch, height and width; else the example's sizes alone, for networks that cannot, and for
            runtimes that want them fixed.
        others: Further inputs to compare at, of other sizes. By default, for upsamplers and for models of a single map,
            another batch at odd sizes (at multiples of 32 more where the model refuses those), and one more.
        check: Compare, else write at once.
        seconds: To time onnxruntime and PyTorch each, in turns and with PyTorch's number of threads; 0 for not.
        overwrite: Replace a file that is there.
        output_names: Of the results; by default `output`, or `output_0`, `output_1` ...
        metadata: Goes into the file's `metadata_props`, each value as JSON, beside `inputs`, `outputs` and the version
            in `fadeup`; see `describe`.

    Raises:
        ValueError: An argument does not fit; the file is there; the model fixes sizes, or is of operators that ONNX
            does not have; or onnxruntime gives other results. Nothing is written then.
        FileNotFoundError: The folder is not there.
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is missing.
        OSError: The file cannot be written.
    """
    target = check_path(Path(path), overwrite)
    for package in ("onnx", "onnxscript", *(("onnxruntime",) if check or seconds else ())):
        needed_for_onnx(package)
    _check_opset(opset)
    inputs = checked(example)
    more = other_inputs(model, inputs, others, check) if dynamic else []
    pairs = [inputs, *more] if check else []
    # Traced at odd sizes where it takes them: the exporter may take sizes that are equal by accident for a rule.
    program = export_program(model, more[0] if more else inputs, dynamic=dynamic)
    proto = _to_onnx(model, program, opset, output_names)
    named = _named(proto.graph)
    _describe(proto, {"fadeup": fadeup.__version__, **named, **(metadata or {})})
    operators = _operators(proto)
    size = proto.ByteSize()
    if size > LARGEST_FILE:
        raise ValueError(f"model must fit into a file of 2 GiB, got {size / 2**30:.1f} GiB; ONNX holds no more in one")
    content = proto.SerializeToString()
    comparisons: tuple[Comparison, ...] = ()
    times: dict[str, Timing] = {}
    if check or seconds:
        session = open_session(content)
        comparisons = tuple(compared(model, session, one, dynamic) for one in pairs)
        times = timed(model, session, tuple(x[:1] for x in inputs) if dynamic else inputs, seconds)
    write(target, content)
    held = [*model.parameters(), *model.buffers()]
    return ExportReport(
        path=target,
        file_bytes=len(content),
        weights_bytes=sum(x.numel() * x.element_size() for x in held),
        opset=opset,
        operators=operators,
        inputs=named["inputs"],
        outputs=named["outputs"],
        comparisons=comparisons,
        threads=torch.get_num_threads(),
        onnxruntime=times.get("onnxruntime"),
        pytorch=times.get("pytorch"),
    )


def describe(about: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a trained network: what its file of weights says of task, classes, normalisation and scores."""
    return {key: about[key] for key in DESCRIBED if key in about}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of an ONNX file; of values that are not JSON, which others have written, the text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no ONNX file.
        ModuleNotFoundError: onnx is missing.
    """
    onnx, file = needed_for_onnx("onnx"), Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path must be an ONNX file, got {file}, which does not exist")
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's
        raise ValueError(f"path must be an ONNX file, got {file}: {first_lines(error)}") from error
    return {one.key: _plain(one.value) for one in model.metadata_props}


def check_path(path: Path, overwrite: bool = False) -> Path:
    """`path`, where a file of ONNX can be written to it.

    Raises:
        ValueError: It ends otherwise, or is there and not to be overwritten.
        FileNotFoundError: Its folder is not there.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"path must end in .onnx, got {str(path)!r}")
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(f"path must be a new file, got {path}, which exists; set overwrite or choose another name")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path must be in a folder that exists, got {path}; make {path.parent}")
    return path


def _check_opset(opset: int) -> None:
    newest = needed_for_onnx("onnx").defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OPSET <= opset <= newest:
        raise ValueError(f"opset must be {OPSET} to {newest}, which the installed onnx knows, got {opset!r}")


def _to_onnx(model: nn.Module, program: ExportedProgram, opset: int, output_names: Sequence[str] | None) -> Any:
    """The ONNX model without the exporter's traces of source files, which name folders of this machine."""
    count = len([one for one in program.graph_signature.output_specs if one.kind.name == "USER_OUTPUT"])
    names = list(output_names or (["output"] if count == 1 else [f"output_{index}" for index in range(count)]))
    if len(names) != count:
        raise ValueError(f"output_names must be {count}, one for each result of the model, got {names}")
    if taken := sorted(set(names) & set(program.graph_signature.user_inputs)):
        raise ValueError(f"output_names must differ from the inputs' names, got {taken[0]!r}")
    options: dict[str, Any] = {"opset_version": opset, "output_names": names, "external_data": False, "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            converted = torch.onnx.export(program, (), dynamo=True, **options)
        except Exception as error:  # its errors have no common class
            name = type(model).__name__
            raise ValueError(f"model must be of operators that ONNX has, got {name}: {first_lines(error)}") from error
    assert converted is not None
    proto = converted.model_proto
    proto.producer_name, proto.producer_version = "fadeup", fadeup.__version__
    for graph in _graphs(proto.graph):
        for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
    return proto


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _operators(proto: Any) -> dict[str, int]:
    """How often each operator is used, most first.

    Raises:
        ValueError: One is not of the standard domain.
    """
    nodes = [node for graph in _graphs(proto.graph) for node in graph.node]
    others = {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")}
    if others or len(proto.functions):
        names = ", ".join(sorted(others)) or proto.functions[0].name
        raise ValueError(f"model must be of standard ONNX operators, got {names}")
    return dict(Counter(node.op_type for node in nodes).most_common())


def _named(graph: Any) -> dict[str, dict[str, list[str | int]]]:
    """Names of inputs and outputs with their axes, the exporter's symbols in words, in the graph too."""
    words: dict[str, str] = {}
    several = len(graph.input) > 1
    for value in graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            word = {0: "batch", 2: "height", 3: "width"}.get(axis, f"axis_{axis}")
            if dim.dim_param:
                words.setdefault(dim.dim_param, f"{value.name}_{word}" if several and axis else word)
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in words) or r"(?!)")
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.sub(lambda found: words[found[0]], dim.dim_param)

    def axes(values: Any) -> dict[str, list[str | int]]:
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
        }

    return {"inputs": axes(graph.input), "outputs": axes(graph.output)}


def _describe(proto: Any, metadata: Mapping[str, Any]) -> None:
    proto.ClearField("metadata_props")
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
