"""Hooks: how a pass sees, and changes, the tensors at the places of a module.

A place gets one dispatcher, which all passes share. It looks up the hooks of the pass that the
*current thread* is running, and does nothing where there are none. So passes of several threads, a
pass that an edit's function runs by itself, and bare calls of the module never see each other's
tensors. A dispatcher is taken off when nobody needs its place any more.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from offkey.data import Batch
from offkey.errors import ModelBusy

__all__ = [
    "Hook",
    "HookSet",
    "HookedCall",
    "Occupancy",
    "Place",
    "Port",
    "Side",
    "call_hooks",
    "current_call",
    "hook_modules",
    "hooks_at",
    "open_contexts",
    "running",
    "tensor_of",
    "unhooked",
    "with_tensor",
]

Hook = Callable[[Tensor], Tensor | None]
"""Sees the tensor at a place; what it returns, if anything, takes the tensor's place."""

Side = Literal["in", "out", "q", "k", "v", "pattern", "forward"]
Key = tuple[nn.Module, Side]

_LOCK = threading.RLock()


class Port(Protocol):
    """The way to what an attention kernel is given."""

    def check(self, side: Side) -> None:
        """Refuses what the kernel does not show."""

    def switched(self) -> Callable[[], None]:
        """Lets the kernel show it; what it returns takes that back."""


@dataclass(frozen=True)
class Place:
    """Where a tensor passes.

    Attributes:
        module: the module there.
        side: its first tensor argument (``"in"``), its output (``"out"``), or for an attention
            module what its kernel is given.
        heads: where the last axis holds so many heads side by side, hooks see ``[…, head, d]``.
        shared: whether the caller goes on using the argument beside the module. A changed value
            is then written into the tensor itself, so that the branch around the module sees it.
        port: switches the attention kernel, for ``"q"``, ``"k"``, ``"v"`` and ``"pattern"``.
    """

    module: nn.Module
    side: Side
    heads: int | None = None
    shared: bool = False
    port: Port | None = None

    def view(self, hook: Hook) -> Hook:
        """The hook as a function of the tensor that the module has there."""
        if self.heads is not None:
            return partial(_on_heads, hook, self.heads)
        return partial(_in_place, hook) if self.shared else hook


class HookSet:
    """The hooks of one pass, or of one context that is open, by place.

    Hooks at one place are called by their order (-1, 0 or 1), and then as they were added.

    Attributes:
        hooks: by order and place.
        outputs: what modules return instead of being run.
        edited: the model whose edits these are, if they are edits.
    """

    def __init__(self, edited: nn.Module | None = None) -> None:
        self.edited = edited
        self.hooks: dict[int, dict[Key, list[Hook]]] = {-1: {}, 0: {}, 1: {}}
        self.ports: dict[Key, Port] = {}
        self.outputs: dict[nn.Module, Any] = {}

    def add(self, place: Place, hook: Hook, *, order: Literal[-1, 0, 1] = 0) -> None:
        """Adds a hook at a place."""
        key = (place.module, place.side)
        if place.port is not None:
            place.port.check(place.side)
            self.ports[key] = place.port
        self.hooks[order].setdefault(key, []).append(place.view(hook))

    @property
    def keys(self) -> list[Key]:
        """The places that need a dispatcher."""
        skipped: list[Key] = [(module, "forward") for module in self.outputs]
        return [*dict.fromkeys(key for part in self.hooks.values() for key in part), *skipped]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Keeps a dispatcher at each place while it is open."""
        keys: list[Key] = []
        try:
            with _LOCK:
                for key in self.keys:
                    _claim(key, self.ports.get(key))
                    keys.append(key)
            yield
        finally:
            with _LOCK:
                for key in keys:
                    _release(key)


@dataclass
class HookedCall:
    """A call of a module that the current thread has under way.

    Attributes:
        hooks: what is called at each place.
        outputs: what modules return instead of being run.
        top: the module that is called; ``None`` for calls by hand in an open context.
        batch: what it is given; ``None`` for calls by hand.
        context: what else is known of the pass, where anything is.
        notes: what hooks of this call keep for each other.
    """

    hooks: dict[Key, list[Hook]]
    outputs: dict[nn.Module, Any] = field(default_factory=dict)
    top: nn.Module | None = None
    batch: Batch | None = None
    context: Any = None
    notes: dict[Any, Any] = field(default_factory=dict)


class _Thread(threading.local):
    """What one thread has under way.

    Attributes:
        call: the call whose hooks are looked up now; ``None`` while a hook is called, so that what
            the hook runs by itself is apart from the call around it.
        caller: the call whose hook is being called.
        contexts: the contexts that are open.
    """

    def __init__(self) -> None:
        self.call: HookedCall | None = None
        self.caller: HookedCall | None = None
        self.contexts: list[HookSet] = []


_THREAD = _Thread()


def current_call() -> HookedCall | None:
    """The call whose hook is running in this thread."""
    return _THREAD.caller


def open_contexts() -> list[HookSet]:
    """The hooks of the contexts that this thread has open."""
    return _THREAD.contexts


@contextmanager
def running(
    hooks: HookSet, top: nn.Module, batch: Batch, context: Any = None
) -> Iterator[HookedCall]:
    """Lets this thread's call of ``top`` meet the hooks, after those of its open contexts."""
    before = _THREAD.call
    call = _merged([*_THREAD.contexts, hooks], hooks.outputs)
    call.top, call.batch, call.context = top, batch, context
    _THREAD.call = call
    try:
        with hooks.installed():
            yield call
    finally:
        _THREAD.call = before


@contextmanager
def hook_modules(hooks: HookSet) -> Iterator[None]:
    """Lets every call of the modules by this thread meet the hooks, while it is open."""
    with hooks.installed():
        _set_contexts([*_THREAD.contexts, hooks])
        try:
            yield
        finally:
            _set_contexts([each for each in _THREAD.contexts if each is not hooks])


@contextmanager
def unhooked() -> Iterator[None]:
    """Lets this thread call modules without any hook of ours, while it is open."""
    before, _THREAD.call = _THREAD.call, None
    try:
        yield
    finally:
        _THREAD.call = before


def _set_contexts(contexts: list[HookSet]) -> None:
    _THREAD.contexts = contexts
    _THREAD.call = _merged(contexts, {}) if contexts else None


def _merged(layers: list[HookSet], outputs: dict[nn.Module, Any]) -> HookedCall:
    hooks: dict[Key, list[Hook]] = {}
    for order in (-1, 0, 1):
        for layer in layers:
            for key, each in layer.hooks[order].items():
                hooks.setdefault(key, []).extend(each)
    # A module that is not run shows nothing but, where it is the last of them, its output.
    for module in outputs:
        hooks.pop((module, "in"), None)
    for module in list(outputs)[:-1]:
        hooks.pop((module, "out"), None)

    return HookedCall(hooks, dict(outputs))


def hooks_at(module: nn.Module, side: Side) -> list[Hook] | None:
    """The hooks that the current thread has at a place; ``None`` where it has none."""
    call = _THREAD.call
    return None if call is None else call.hooks.get((module, side))


def call_hooks(hooks: Iterable[Hook], x: Tensor) -> Tensor | None:
    """What hooks, one after the other, put in the tensor's place; ``None`` if nothing.

    They are called apart from the call that they belong to.
    """
    thread, new = _THREAD, None
    before = thread.call, thread.caller, thread.contexts
    thread.call, thread.caller, thread.contexts = None, thread.call, []
    try:
        for hook in hooks:
            made = hook(x)
            if made is not None:
                x = new = made
    finally:
        thread.call, thread.caller, thread.contexts = before

    return new


class Occupancy:
    """Which threads run a module, and which one has its weights moved.

    Passes of several threads may be open at once, but none beside weights that another thread has
    moved. It is shared by all models of one module.
    """

    def __init__(self) -> None:
        self.passes: Counter[int] = Counter()
        self.owner: int | None = None
        self.depth = 0

    @classmethod
    def of(cls, top: nn.Module) -> "Occupancy":
        """The one that belongs to a module."""
        with _LOCK:
            return _OCCUPANCIES.setdefault(top, cls())

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While this is open, no other thread moves the weights.

        Raises:
            ModelBusy: another thread has moved them.
        """
        thread = threading.get_ident()
        with _LOCK:
            if self.owner not in (None, thread):
                raise ModelBusy(
                    "another thread has its weights perturbed",
                    where="model",
                    mend="Close its context first, or give each thread a copy of the model",
                )
            self.passes[thread] += 1
        try:
            yield
        finally:
            with _LOCK:
                self.passes[thread] -= 1
                self.passes += Counter()  # drops threads without a pass

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """While this is open, no other thread runs the module.

        Raises:
            ModelBusy: another thread has a pass open, or the weights moved.
        """
        thread = threading.get_ident()
        with _LOCK:
            others = [each for each in self.passes if each != thread]
            if others or self.owner not in (None, thread):
                raise ModelBusy(
                    "its weights cannot be perturbed while another thread runs it",
                    where="model",
                    mend="Close the other thread's pass first, or give each thread a copy",
                )
            self.owner, self.depth = thread, self.depth + 1
        try:
            yield
        finally:
            with _LOCK:
                self.depth -= 1
                self.owner = self.owner if self.depth else None


_OCCUPANCIES: WeakKeyDictionary[nn.Module, Occupancy] = WeakKeyDictionary()


# -- dispatchers -----------------------------------------------------------------------------


@dataclass
class _Installed:
    """A dispatcher on a place, and how many need it."""

    remove: Callable[[], None]
    users: int = 0


_INSTALLED: dict[Key, _Installed] = {}


def _claim(key: Key, port: Port | None) -> None:
    if key not in _INSTALLED:
        _INSTALLED[key] = _Installed(_installer(key, port))
    _INSTALLED[key].users += 1


def _release(key: Key) -> None:
    _INSTALLED[key].users -= 1
    if not _INSTALLED[key].users:
        _INSTALLED.pop(key).remove()


def _installer(key: Key, port: Port | None) -> Callable[[], None]:
    """Puts a dispatcher on a place; what it returns takes it off."""
    module, side = key
    if side == "in":
        return module.register_forward_pre_hook(_on_input, with_kwargs=True).remove
    if side == "out":
        return module.register_forward_hook(_on_output).remove
    if side == "forward":
        return _replaceable(module)
    assert port is not None
    return port.switched()


def _on_input(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
    # Torch leaves out kwargs if another thread takes the dispatcher off at this moment.
    hooks = hooks_at(module, "in")
    if hooks is None:
        return None
    key = _first_tensor(args, kwargs)
    x = args[key] if isinstance(key, int) else kwargs[key]
    new = call_hooks(hooks, x)
    if new is None:
        return None
    if isinstance(key, int):
        return (*args[:key], new, *args[key + 1 :]), kwargs

    return args, {**kwargs, key: new}


def _on_output(module: nn.Module, _: Any, output: Any) -> Any:
    hooks = hooks_at(module, "out")
    if hooks is None:
        return None
    new = call_hooks(hooks, tensor_of(output))

    return None if new is None else with_tensor(output, new)


def _replaceable(module: nn.Module) -> Callable[[], None]:
    """Lets a module return an output that is known, to those who have one."""
    own, original = module.__dict__.get("forward"), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        call = _THREAD.call
        if call is not None and module in call.outputs:
            return call.outputs[module]
        return original(*args, **kwargs)

    def restore() -> None:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = own

    module.forward = cast(Any, forward)

    return restore


def _on_heads(hook: Hook, n_heads: int, flat: Tensor) -> Tensor | None:
    new = hook(flat.view(*flat.shape[:-1], n_heads, -1))
    return None if new is None else new.flatten(-2)


def _in_place(hook: Hook, x: Tensor) -> None:
    def kept(saved: Tensor) -> Tensor:
        # What the hook's own graph needs of the tensor is not written over below.
        return saved.clone() if saved.data_ptr() == x.data_ptr() else saved

    with saved_tensors_hooks(kept, lambda saved: saved):
        new = hook(x)
    if new is not None and new is not x:
        x.copy_(new)


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    for place, value in (*enumerate(args), *kwargs.items()):
        if isinstance(value, Tensor):
            return place
    raise TypeError("the module was called without a tensor")


def tensor_of(output: Any) -> Tensor:
    """The tensor of an output: itself, the first of a tuple, or the logits of a model output."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        return output["logits"] if "logits" in output else tensor_of(next(iter(output.values())))
    if isinstance(output, tuple | list):
        return tensor_of(output[0])
    raise TypeError(f"no tensor in an output of type {type(output).__name__}")


def with_tensor(output: Any, new: Tensor) -> Any:
    """The output with another tensor in the place of :func:`tensor_of`."""
    if isinstance(output, Tensor):
        return new
    if isinstance(output, MutableMapping):
        key = "logits" if "logits" in output else next(iter(output))
        output[key] = with_tensor(output[key], new)
        return output
    rest = (with_tensor(output[0], new), *output[1:])

    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)
