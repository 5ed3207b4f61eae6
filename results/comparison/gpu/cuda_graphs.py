"""CUDA graph capture and replay, which removes the overhead of kernel launches.

An update of these networks is thousands of small operations. If the CPU launches them more slowly than the GPU runs
them, a CUDA graph, which launches all at once, makes the update faster.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Work = Callable[[Inputs], Outputs]
# Captures a call without arguments: returns its outputs, and a function that repeats it into the same memory.
GraphCapture = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], object]]]


def cuda_graph(work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
    """Capture a CUDA graph in memory of its own, so that other graphs do not overwrite its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return outputs, graph.replay


class GraphedFunction:
    """A function of tensors that runs eagerly in its first calls, is then captured, and replayed from there on.

    The function may compute gradients, which it sets anew in every call. It must not synchronize with the CPU or branch
    on values, and tensors that it reads besides its inputs must keep their memory. Inputs of other names or shapes run
    eagerly; if capture fails, all do.

    Args:
        work: the function.
        parameters: parameters whose gradients it sets.
        record: capture function, such as `cuda_graph`.
    """

    WARM_UP = 3  # eager calls, in which libraries choose algorithms and the optimizer creates its state

    def __init__(self, work: Work, parameters: Iterable[torch.nn.Parameter], record: GraphCapture) -> None:
        self._work, self._parameters, self._record = work, list(parameters), record
        self._calls = 0
        self._replay: Callable[[], object] | None = None
        self._inputs: Outputs = {}
        self._outputs: Outputs = {}
        self._gradients: list[Tensor | None] = []

    def __call__(self, inputs: Inputs) -> Outputs:
        """Compute the function."""
        self._calls += 1
        if self._calls == self.WARM_UP + 1:
            self._start(inputs)
        if self._replay is None or not self._fits(inputs):
            return self._work(inputs)
        for name, value in inputs.items():
            self._inputs[name].copy_(value)
        self._replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return {name: value.clone() for name, value in self._outputs.items()}  # the next call overwrites them

    def _start(self, inputs: Inputs) -> None:
        self._inputs = {name: value.clone() for name, value in inputs.items()}
        try:
            self._outputs, self._replay = self._record(lambda: self._work(self._inputs))
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(f"not recorded as a CUDA graph, which costs speed only: {reason}", stacklevel=3)
            return
        self._gradients = [parameter.grad for parameter in self._parameters]

    def _fits(self, inputs: Inputs) -> bool:
        return inputs.keys() == self._inputs.keys() and all(
            value.shape == self._inputs[name].shape for name, value in inputs.items()
        )


def by_cuda_graph(work: Work, parameters: Iterable[torch.nn.Parameter]) -> GraphedFunction:
    """Return work that sets the gradients of parameters, replayed as a CUDA graph."""
    return GraphedFunction(work, parameters, cuda_graph)


def for_sampling(network: nn.Module, device: torch.device, record: bool = True) -> nn.Module:
    """Return a network in eval mode, wrapped in `GraphedModule` on a CUDA GPU if `record` is true."""
    return GraphedModule(network) if record and device.type == "cuda" else network


class GraphedModule(nn.Module):
    """A network in eval mode whose evaluations of small batches are captured and replayed.

    Large batches keep a GPU busy anyway, and their graphs would hold much memory. With gradients, the network runs
    eagerly.

    Args:
        network: module in eval mode on the GPU; its weights must keep their memory.
        record: capture function, such as `cuda_graph`.
    """

    LARGEST = 256  # maximum batch size of a graph
    SHAPES = 16  # maximum number of graphs held, one per input shape

    def __init__(self, network: nn.Module, record: GraphCapture = cuda_graph) -> None:
        super().__init__()
        self.network = network
        self._record = record
        self._recorded: dict[object, GraphedFunction] = {}

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Return the network's output, one tensor; the first argument is the images (N, C, H, W)."""
        if len(args[0]) > self.LARGEST:
            self._recorded.clear()  # frees their memory for the large batch
        if torch.is_grad_enabled() or len(args[0]) > self.LARGEST:
            output: Tensor = self.network(*args, **kwargs)
            return output
        inputs = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        device = args[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        key = (shapes, autocast, torch.is_inference_mode_enabled())
        if key not in self._recorded:
            if len(self._recorded) == self.SHAPES:
                del self._recorded[next(iter(self._recorded))]
            self._recorded[key] = GraphedFunction(self._work(len(args), device, autocast), (), self._record)
        return self._recorded[key](inputs)["output"]

    def _work(self, positional: int, device: str, autocast: torch.dtype | None) -> Work:
        def work(inputs: Inputs) -> Outputs:
            values = list(inputs.items())
            # A weight that autocast cached before the capture would be freed before the replay.
            with torch.autocast(device, autocast, enabled=autocast is not None, cache_enabled=False):
                output = self.network(*(value for _, value in values[:positional]), **dict(values[positional:]))
            return {"output": output}

        return work
