"""The mark of alpha in a state dict: the dense weight has one shape at every alpha, so its shape cannot tell."""

from __future__ import annotations

from typing import Any

from torch import nn

_MESSAGE = "these weights have alpha"


class AlphaMarked(nn.Module):
    """Records ``alpha_mark`` where PyTorch records versions, and refuses weights marked with another alpha.

    No key is added, so ``strict=True`` holds between an octave network and its dense twin. Weights without a mark, or
    marked as dense (all alphas 0), are dense weights and load at any alpha.
    """

    alpha_mark: tuple[float, ...]

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f"torch.jit.script cannot compile {type(self).__name__}, which takes a tensor or an octave: use "
            f"torch.jit.trace, torch.export or octaveconv.export"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]]["alpha"] = self.alpha_mark

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = tuple(local_metadata.get("alpha", ()))
        told = any(_MESSAGE in message for message in error_msgs)  # one message for the whole network
        if any(saved) and saved != self.alpha_mark and not told:
            error_msgs.append(
                f"{prefix[:-1] or type(self).__name__}: {_MESSAGE} {saved} and this module has alpha "
                f"{self.alpha_mark}. Build it with that alpha, or load dict(state_dict), a copy without the mark, "
                f"to use them as dense weights"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
