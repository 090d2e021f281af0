"""What a card would do, where there is none: quick answers for operators on meta tensors, and attention as a card runs it.

Torch works out the shape of every result in Python, which costs more than all the bookkeeping of a simulation; but a
denoiser asks the same questions over and over. An operator's outputs are a function of its inputs' shapes, strides and
dtypes, so the first answer is kept and later ones are empty tensors of that layout. Nothing is guessed: views, and
operators that were not seen with such inputs, always run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SHAPERS = (
    "resize",
    "set_",
    "as_strided",
    "detach",
    "requires_grad",
    "t_.",
    "transpose_",
    "squeeze_",
    "unsqueeze_",
    "swap",
)


_ANSWERS: dict[Any, Outcome | None] = {}  # None: runs every time
_IN_PLACE: dict[Any, Outcome | None] = {}


class Outcome:
    """make() builds fresh outputs; None where the operator only changes its first argument (or nothing) in place."""

    __slots__ = ("make", "returns", "work")

    def __init__(self, make: Callable[[], Any] | None, returns: bool, work: tuple[int, int, int]):
        self.make, self.returns, self.work = make, returns, work

    def unchanged(self, args: tuple) -> Any:
        """What an operator in place returns: its first argument, which on meta has nothing to change."""
        return args[0] if self.returns else None


class Outcomes:
    """The memory of answers, shared by all simulations of the process (it holds shapes, no tensors)."""

    def __init__(self):
        self.answers, self.in_place = _ANSWERS, _IN_PLACE

    def find(self, func: Any, args: tuple, kwargs: dict) -> Outcome | None:
        if func in self.in_place:
            quick = self.in_place[func]
        else:
            quick = self.in_place[func] = _in_place(func)
        if quick is not None:
            return quick if all(_is_meta(value) for value in args) else None
        if func.is_view:
            return None
        self._key = _key(func, args, kwargs)
        return None if self._key is None else self.answers.get(self._key)

    def learn(self, func: Any, args: tuple, kwargs: dict, out: Any, fresh: bool, work: tuple[int, int, int]) -> None:
        """Right after `find` had no answer and the operator ran."""
        if func.is_view or self.in_place[func] is not None or self._key is None or self._key in self.answers:
            return
        self.answers[self._key] = Outcome(_maker(out), True, work) if fresh and _maker(out) is not None else None


def _in_place(func: Any) -> Outcome | None:
    """For operators that write their first argument and return it, or write any and return nothing."""
    schema = func._schema
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
    if not any(written) or schema.name.split("::")[1].startswith(SHAPERS):
        return None
    if not schema.returns:
        return Outcome(None, False, (0, 0, 0))
    first = written[0] and not any(written[1:]) and len(schema.returns) == 1
    return Outcome(None, True, (0, 0, 0)) if first and schema.returns[0].alias_info is not None else None


def _is_meta(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.device.type == "meta"


def _key(func: Any, args: tuple, kwargs: dict) -> Any:
    """A hashable description of a call, or None where there is no meta tensor in it or something cannot be described."""
    found: list[Any] = [func]
    tensors = 0
    for value in (*args, *kwargs.items()):
        if isinstance(value, Tensor):
            tensors += 1
            if value.device.type == "meta":
                found.append((value.shape, value.stride(), value.dtype))
            elif value.dim() == 0:
                found.append((value.device.type, value.dtype))
            else:
                return None
        elif isinstance(value, (list, tuple)):
            if any(isinstance(item, Tensor) for item in value):
                inner = _key(func, tuple(value), {})
                if inner is None:
                    return None
                tensors += 1
                found.append(inner)
            else:
                found.append(tuple(value))
        else:
            found.append((type(value), value))
    key = tuple(found)
    try:
        hash(key)
    except TypeError:  # a generator, say
        return None
    return key if tensors else None


def _maker(out: Any) -> Callable[[], Any] | None:
    """A function that makes empty tensors laid out as those of `out`; None where it is not made of meta tensors."""
    if isinstance(out, Tensor):
        if out.device.type != "meta" or out.storage_offset() or not _is_dense(out):
            return None
        size, stride, dtype = out.shape, out.stride(), out.dtype
        return lambda: torch.empty_strided(size, stride, dtype=dtype, device="meta")
    if isinstance(out, (tuple, list)) and out:
        makers: list[Callable[[], Any]] = []
        for value in out:
            maker = _maker(value) if isinstance(value, Tensor) else (lambda value=value: value)
            if maker is None:
                return None
            makers.append(maker)
        storages = [value.untyped_storage()._cdata for value in out if isinstance(value, Tensor)]
        if len(set(storages)) != len(storages):
            return None
        kind = type(out) if type(out) in (tuple, list) else tuple
        return lambda: kind(maker() for maker in makers)
    return None


def _is_dense(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


class CardAttention(TorchFunctionMode):
    """Attention on meta tensors as a card would run it: torch itself takes the math path there, which stores every score.

    16-bit heads of at most 256 without a mask go to the flash kernel, all others to the memory-efficient one, as
    torch's own choice on CUDA does. listen: told of every call.
    """

    def __init__(self, listen: Callable[[Asked], None] | None = None):
        super().__init__()
        self.listen = listen

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            asked = Asked(*args, **(kwargs or {}))
            if self.listen is not None:
                self.listen(asked)
            return _attend(asked)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Asked:
    """What torch's attention is called with, under torch's names and in its order."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


def _attend(asked: Asked) -> Tensor:
    query, key, value, attn_mask = asked.query, asked.key, asked.value, asked.attn_mask
    dropout_p, is_causal, scale = asked.dropout_p, asked.is_causal, asked.scale
    if query.device.type != "meta":
        attention = nn.functional.scaled_dot_product_attention
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=asked.enable_gqa)
    if query.dtype in (torch.bfloat16, torch.float16) and attn_mask is None and query.shape[-1] <= 256:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
            0
        ]
    needs_grad = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
    )[0]
