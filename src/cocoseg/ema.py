"""An exponential moving average of the weights, which is what is validated and exported."""

import copy

import torch
from torch import Tensor, nn

PREFIX, AVERAGED = "net.", "average.net."  # of the keys in a checkpoint


class Average(nn.Module):
    """The average of a network's weights over the steps so far, the latest counting most.

    After t steps the average is moved by 1 / (t / 9 + 1) towards the weights, and by 1 - decay at least: it
    looks back over a ninth of the steps at most, so that it forgets the first ones in short runs, too.
    Statistics of BatchNorm are averaged like weights, for they belong to them.

    Args:
        net: is copied.
        decay: as in 0.999, which looks back over a thousand steps.

    Attributes:
        net: with the averaged weights, in evaluation mode.
    """

    def __init__(self, net: nn.Module, decay: float):
        super().__init__()
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self._step = 0  # of the last update

    def train(self, mode: bool = True) -> "Average":
        """Stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Take the weights after so many steps into the average; once for each step."""
        if step == self._step:
            return
        self._step = step
        weight = max(1 - self.decay, 1 / (step / 9 + 1))
        ours, theirs = _floats(self.net), _floats(net)
        torch._foreach_lerp_(ours, theirs, weight)
        for own, other in zip(self.net.buffers(), net.buffers(), strict=True):
            if not own.is_floating_point():
                own.copy_(other)


def _floats(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *(buffer for buffer in net.buffers() if buffer.is_floating_point())]


def follow_setting(weights: dict[str, Tensor], *, averages: bool) -> None:
    """Make a checkpoint's weights fit a run that averages, or one that does not, whatever it was before."""
    for key in [key for key in weights if key.startswith(AVERAGED)]:
        if not averages:
            del weights[key]
    if averages and not any(key.startswith(AVERAGED) for key in weights):
        for key in [key for key in weights if key.startswith(PREFIX)]:
            weights[AVERAGED + key.removeprefix(PREFIX)] = weights[key].clone()


def result_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a checkpoint that were validated, by the network's own keys."""
    prefix = AVERAGED if any(key.startswith(AVERAGED) for key in weights) else PREFIX
    return {key.removeprefix(prefix): weight for key, weight in weights.items() if key.startswith(prefix)}
