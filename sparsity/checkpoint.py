"""Checkpoints: orbax's CheckpointManager behind one thin class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one run: saved in the background, the last `keep` kept.

    Use as a context manager: leaving waits for the save under way. `read_only` changes nothing on
    disk, not even the half-written checkpoint of a run that is still training; without it, what a
    kill left half-written is removed.
    """

    def __init__(self, directory: Path, keep: int = 2, *, read_only: bool = False):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=not read_only, read_only=read_only
        )
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving `state` (a pytree of arrays) with `meta` (JSON) beside it; a step is saved once."""
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args)

    def latest(self) -> int | None:
        """The last step saved whole, or None."""
        return self._manager.latest_step()

    def restore(self, abstract_state: Any, step: int | None = None) -> Any:
        """The state saved at `step` (the latest by default), onto the target's shardings.

        Args:
          abstract_state: a pytree of `jax.ShapeDtypeStruct` with shardings; any mesh will do.

        Raises:
          FileNotFoundError: there is no checkpoint.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._manager.directory}")
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        return self._manager.restore(step, args=args)["state"]
