"""Work of a GPU that is recorded once and then replayed, so that the host need not launch every operation anew.

An update of these networks is thousands of small operations. Where the host takes longer to launch them than the GPU
to do them, a CUDA graph, which launches all of them at once, is what makes an update faster.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
Work = Callable[[Inputs], Outputs]
# Records a call without arguments: returns its outputs, and what does the same again into the same memory.
Recorder = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], object]]]


def cuda_graph(work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], object]]:
    """Record a CUDA graph, in memory of its own: in shared memory another graph's work would overwrite its results."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return outputs, graph.replay


class Replay:
    """A function of tensors, plain in its first calls, then recorded, and replayed from there on.

    The function may compute gradients; it sets those of `parameters` anew in every call. It must wait for nothing on
    the host and decide nothing by values, and what it reads besides its inputs must stay where it is. Inputs of other
    names or shapes than were recorded are computed plainly; where recording fails, all are.

    Args:
        work: the function.
        parameters: whose gradients it leaves.
        record: such as `cuda_graph`.
    """

    WARM_UP = 3  # calls in which libraries choose their algorithms and the optimizer makes its state

    def __init__(self, work: Work, parameters: Iterable[torch.nn.Parameter], record: Recorder) -> None:
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
        return {name: value.clone() for name, value in self._outputs.items()}  # the next call writes there

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


def by_cuda_graph(work: Work, parameters: Iterable[torch.nn.Parameter]) -> Replay:
    """Return work that leaves the gradients of parameters, recorded as a CUDA graph."""
    return Replay(work, parameters, cuda_graph)
