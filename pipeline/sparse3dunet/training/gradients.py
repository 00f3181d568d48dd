"""Guard against wrong gradients: float32 where bfloat16 is wrong, and no step by an implausible gradient."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

from sparse3dunet.errors import DataError
from sparse3dunet.inference.inferers import WITHOUT_BFLOAT16, trains_in_bfloat16_on_a_cpu
from sparse3dunet.keys import IMAGE
from sparse3dunet.training import bfloat16

REMEMBERED = 100
"""Number of last steps by which the next one is judged."""
_ENOUGH = 20  # steps to know how large a gradient usually is
_MOST_IN_A_ROW, _MOST_REMEMBERED = 10, REMEMBERED // 5  # skipped steps


class GradientGuard:
    """Handler of MONAI's trainer that skips optimizer steps whose gradient cannot be correct.

    Such a gradient is not finite, or its norm is above `factor` times the median of the steps before (above `largest`
    while few are known): the weights stay the same. Kept in ``engine.state``, and in a resumable training's state, are
    ``gradient_norms`` of the last steps taken, ``steps_skipped`` (1 for each skipped one of the last steps, else 0) and
    ``steps_skipped_in_all``. With a gradient scaler (float16), the scaler skips steps instead.

    If the inferer uses bfloat16 on a CPU, convolutions whose gradient would be wrong are set to float32 before the
    first step, see :func:`sparse3dunet.training.bfloat16.protect`.

    Args:
        network: the network to be trained, not its wrapper for several processes (DDP).
        factor: largest ratio of a norm to the median.
        largest: largest norm while there is no median.
    """

    def __init__(self, network: torch.nn.Module, factor: float = 1e6, largest: float = 1e12) -> None:
        self.network = network
        self.factor = factor
        self.largest = largest
        self.is_protected = False

    def attach(self, engine: Engine) -> None:
        self._forget(engine)
        engine.state_dict_user_keys.extend(["gradient_norms", "steps_skipped", "steps_skipped_in_all"])
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.protect)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def start(self, engine: Engine) -> None:
        if engine.state.iteration == 0:
            self._forget(engine)

    def protect(self, engine: Engine) -> None:
        """Set convolutions to float32 before the first step of this run, for the shape of its batch."""
        if self.is_protected:
            return
        self.is_protected = True
        if trains_in_bfloat16_on_a_cpu(engine):
            batch: Any = engine.state.batch
            number = bfloat16.protect(self.network, batch[IMAGE].shape[1:])
            if idist.get_rank() == 0:
                bfloat16.report(number)

    def check(self, engine: Any) -> None:
        """Clear implausible gradients after the backward pass, so that the optimizer does nothing.

        Raises:
            DataError: when 10 steps in a row were skipped, or more than 20 of the last 100.
        """
        if getattr(engine, "scaler", None) is not None:
            return
        state: Any = engine.state
        groups = engine.optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        skipped = not norm <= self.limit(state.gradient_norms)  # also for NaN
        state.steps_skipped = [*state.steps_skipped, int(skipped)][-REMEMBERED:]
        if not skipped:
            state.gradient_norms = [*state.gradient_norms, norm][-REMEMBERED:]
            return
        engine.optimizer.zero_grad(set_to_none=True)
        state.steps_skipped_in_all += 1
        last = state.steps_skipped[-_MOST_IN_A_ROW:]
        if sum(last) == _MOST_IN_A_ROW or sum(state.steps_skipped) > _MOST_REMEMBERED:
            raise DataError(_reason(engine, norm))

    def limit(self, norms: Sequence[float]) -> float:
        """Return the largest plausible norm of a gradient, given those of the steps before."""
        if len(norms) < _ENOUGH:
            return self.largest
        return max(self.factor * median(norms), 1.0)  # after gradients of 0, others are no outliers

    def finish(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.steps_skipped_in_all and idist.get_rank() == 0:
            print(
                f"{state.steps_skipped_in_all} of {state.iteration} steps were skipped because their gradients were "
                "not finite or far too large."
            )

    @staticmethod
    def _forget(engine: Engine) -> None:
        state: Any = engine.state
        state.gradient_norms, state.steps_skipped, state.steps_skipped_in_all = [], [], 0


def _reason(engine: Engine, norm: float) -> str:
    """Describe why a training ends, and what to do."""
    state: Any = engine.state
    usual = f" (usually {median(state.gradient_norms):.3g})" if state.gradient_norms else ""
    if trains_in_bfloat16_on_a_cpu(engine):
        cure = (
            "bfloat16 is used on a CPU, where PyTorch may compute gradients wrongly at any learning rate: train again "
            f"with {WITHOUT_BFLOAT16}."
        )
    else:
        cure = "Look for images with extreme intensities, or lower the learning rate (--learning_rate) and train again."
    loss = float(state.output["loss"].detach())
    return (
        f"the gradients are wrong at iteration {state.iteration}: their norm is {norm:.3g}{usual}, while the loss is "
        f"{loss:.3g}. {sum(state.steps_skipped)} of the last {len(state.steps_skipped)} steps were skipped for this "
        f"reason. {cure}"
    )
