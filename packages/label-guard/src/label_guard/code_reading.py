"""Read from a function's bytecode whether it may have added a key to a batch. No code of the user runs here.

A function is followed into the functions that it calls, as far as their names lead to functions: globals, closure
variables, arguments of ``functools.partial``, methods and attributes of its object.
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

# Functions of these packages are not followed: they are large, and none adds a key by itself.
NOT_FOLLOWED = sys.stdlib_module_names | {
    "accelerate",
    "datasets",
    "numpy",
    "pandas",
    "pyarrow",
    "tokenizers",
    "torch",
    str(__package__),
}
# Of transformers, only the collators are: its tokenizers write labels, but only if they are asked to.
FOLLOWED_IN_TRANSFORMERS = "transformers.data."
# Methods of transformers' collators for other frameworks.
OTHER_FRAMEWORKS = ("tf_call", "numpy_call")
MAX_FOLLOWED = 100

# Methods of a mapping, and functions, that only look a key up or remove it.
_LOOKUP_METHODS = frozenset({"get", "pop"})
_LOOKUP_FUNCTIONS = frozenset({"getattr", "hasattr", "delattr"})
# Methods and functions that put keys into a mapping or an object.
_WRITERS = frozenset({"dict", "update", "setdefault", "setattr", "replace"})
# Those that may put keys there which are not written in the code.
_COMPUTED_WRITERS = frozenset({"update", "setattr", "fromkeys"})
_SKIPPED = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME", "NOT_TAKEN"})
_CONTAINERS = (tuple, list, set, frozenset, dict)
_MISSING = object()


class Evidence(IntEnum):
    """How much a function's code says for it having added a key."""

    NONE = 0
    # It writes keys that it computes.
    COMPUTES = 1
    # It mentions the key, for example as an argument of a call.
    MENTIONS = 2
    # It writes the key.
    WRITES = 3


@dataclass(frozen=True)
class KeyUse:
    """What a function's code does with a key; ``reads`` is whether it also looks the key up in something."""

    evidence: Evidence = Evidence.NONE
    reads: bool = False

    def __or__(self, other: KeyUse) -> KeyUse:
        return KeyUse(max(self.evidence, other.evidence), self.reads or other.reads)


@dataclass(frozen=True, eq=False)
class Scope:
    """Code, and the values that its names are known to have.

    Attributes:
        code: the code of a function.
        name: its qualified name.
        names: its globals.
        bound: its closure variables, defaults, and arguments bound by ``functools.partial``.
        owner: the object whose method it is, or None.
        extra: values given to it by position, of which the names are not known.
    """

    code: CodeType
    name: str
    names: Mapping[str, Any]
    bound: Mapping[str, Any] = field(default_factory=dict)
    owner: Any = None
    extra: tuple[Any, ...] = ()

    @classmethod
    def of_function(
        cls,
        function: FunctionType,
        owner: Any = None,
        bound: Mapping[str, Any] | None = None,
        extra: tuple[Any, ...] = (),
    ) -> Scope:
        """Return the scope of a function, with the values of its defaults and closure variables."""
        code = function.__code__
        values = dict(function.__kwdefaults__ or {})
        if defaults := function.__defaults__:
            values.update(zip(code.co_varnames[: code.co_argcount][-len(defaults) :], defaults, strict=True))
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                values[name] = cell.cell_contents
            except ValueError:
                # The variable has no value yet.
                continue
        owner = values.get("self") if owner is None else owner
        # A decorator gives its function the name of another one, but the code is its own.
        name = qualify(code, owner) if hasattr(function, "__wrapped__") else function.__qualname__
        return cls(code, name, function.__globals__, {**values, **(bound or {})}, owner, extra)

    @classmethod
    def of_frame(cls, frame: FrameType) -> Scope:
        """Return the scope of a function that is running."""
        code, values = frame.f_code, frame.f_locals
        bound = {name: values[name] for name in code.co_freevars if name in values}
        owner = values.get("self") if code.co_varnames[:1] == ("self",) else bound.get("self")
        return cls(code, qualify(code, owner), frame.f_globals, bound, owner)

    def lookup(self, name: str) -> Any:
        """Return the value of a closure variable, a default or a global."""
        return self.bound.get(name, self.names.get(name, _MISSING))

    def lookup_attribute(self, name: str) -> Any:
        """Return the value of an attribute of the owner, without running code of its class."""
        return _MISSING if self.owner is None else read_attribute(self.owner, name, _MISSING)


def read_attribute(thing: Any, name: str, default: Any) -> Any:
    """Return an attribute of an object or of its class. Properties and ``__getattr__`` do not run."""
    own = read_variables(thing)
    if name in own:
        return own[name]
    return inspect.getattr_static(type(thing), name, default)


def read_variables(thing: Any) -> dict[str, Any]:
    """Return the attributes of an object itself, without running code of its class."""
    try:
        own = object.__getattribute__(thing, "__dict__")
    except AttributeError:
        return {}
    return own if isinstance(own, dict) else {}


def find_scopes(thing: Any) -> list[Scope]:
    """Return the code that runs when something is called: a function, method, partial, or object with ``__call__``."""
    bound: dict[str, Any] = {}
    extra: tuple[Any, ...] = ()
    owner = None
    while not isinstance(thing, FunctionType):
        if isinstance(thing, (functools.partial, functools.partialmethod)):
            bound, extra, thing = {**thing.keywords, **bound}, thing.args + extra, thing.func
        elif isinstance(thing, MethodType):
            owner, thing = thing.__self__, thing.__func__
        elif isinstance(thing, (staticmethod, classmethod)):
            thing = thing.__func__
        elif isinstance(call := find_method(thing, "__call__"), FunctionType):
            owner, thing = thing, call
        else:
            return []
    return [Scope.of_function(thing, owner, bound, extra)]


def find_method(thing: Any, name: str) -> Any:
    """Return what the class of an object has under a name, without running code of the class."""
    return inspect.getattr_static(type(thing), name, None)


def follow(scopes: list[Scope]) -> Iterator[Scope]:
    """Iterate over scopes and the functions that they call, nearest first."""
    waiting = list(scopes)
    seen: set[tuple[CodeType, int]] = set()
    while waiting and len(seen) < MAX_FOLLOWED:
        scope = waiting.pop(0)
        if (entry := (scope.code, id(scope.owner))) in seen:
            continue
        seen.add(entry)
        yield scope
        waiting += _find_called(scope)


def _find_called(scope: Scope) -> list[Scope]:
    """Return the functions that a scope may call."""
    found: list[Scope] = []
    for name in _iterate_names(scope.code):
        found += _scopes_to_follow(scope.lookup(name))
        found += _methods(scope.owner, name)
        for module in _iterate_modules(scope):
            if is_followed(module.__name__):
                found += _scopes_to_follow(vars(module).get(name))
    for value in (*scope.extra, *scope.bound.values()):
        found += _scopes_to_follow(value)
    return found


def _iterate_modules(scope: Scope) -> Iterator[ModuleType]:
    for name in scope.code.co_names:
        value = scope.names.get(name)
        if isinstance(value, ModuleType):
            yield value


def _iterate_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _iterate_names(constant)


def _methods(owner: Any, name: str) -> list[Scope]:
    """Return the methods of a name in all classes of an object (``super`` may call any), or a callable attribute."""
    if owner is None or name in OTHER_FRAMEWORKS:
        return []
    own = read_variables(owner).get(name)
    if own is not None:
        return _scopes_to_follow(own)
    functions = [vars(kind).get(name) for kind in type(owner).__mro__ if is_followed(kind.__module__)]
    return [
        Scope.of_function(function, owner) for function in functions if isinstance(function, FunctionType)
    ]


def _scopes_to_follow(value: Any) -> list[Scope]:
    if value is None or value is _MISSING or isinstance(value, type) or not callable(value):
        return []
    return [scope for scope in find_scopes(value) if is_followed(str(scope.names.get("__name__", "")))]


def is_followed(module: str) -> bool:
    """Whether functions of a module are followed and can be named."""
    root = module.partition(".")[0]
    if root == "transformers":
        return module.startswith(FOLLOWED_IN_TRANSFORMERS)
    return root not in NOT_FOLLOWED


# What one function does with a key


def read_use(scope: Scope, key: str) -> KeyUse:
    """Return what the code of a scope does with a key."""
    use = _read_code(scope, scope.code, key)
    if any(_is_or_holds(value, key) for value in scope.extra):
        use |= KeyUse(Evidence.MENTIONS)
    return use


def _read_code(scope: Scope, code: CodeType, key: str) -> KeyUse:
    use = KeyUse()
    instructions = [step for step in dis.get_instructions(code) if step.opname not in _SKIPPED]
    for index, step in enumerate(instructions):
        if step.opname == "STORE_ATTR" and step.argval == key:
            use |= KeyUse(Evidence.WRITES)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD", "DELETE_ATTR") and step.argval == key:
            use |= KeyUse(reads=True)
        elif step.opname == "KW_NAMES" and key in (_read_constant(code, step) or ()):
            use |= KeyUse(_judge_call(instructions, index))
        elif _is_or_holds(_read_pushed(scope, step), key):
            use |= _judge_consumer(instructions, index)
        elif _writes_computed_key(scope, instructions, index):
            use |= KeyUse(Evidence.COMPUTES)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            use |= _read_code(scope, constant, key)
    return use


def _read_constant(code: CodeType, step: dis.Instruction) -> Any:
    return code.co_consts[step.arg] if step.arg is not None else None


def _read_pushed(scope: Scope, step: dis.Instruction) -> Any:
    """Return the value that an instruction loads, if it is known."""
    if step.opname.startswith(("LOAD_CONST", "RETURN_CONST")):
        return step.argval
    if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
        return scope.names.get(step.argval)
    if step.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF") or step.opname.startswith("LOAD_FAST"):
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        values = [scope.bound.get(name) for name in names]
        return next((value for value in values if value is not None), None)
    if step.opname == "LOAD_ATTR":
        return scope.lookup_attribute(step.argval)
    return None


def _is_or_holds(value: Any, key: str) -> bool:
    if isinstance(value, str):
        return value == key
    # Only the built-in containers: others may run code of their own.
    return type(value) in _CONTAINERS and any(isinstance(item, str) and item == key for item in value)


def _judge_consumer(instructions: list[dis.Instruction], index: int) -> KeyUse:
    """Judge what happens to the key that an instruction has put on the stack."""
    before = [step.argval for step in instructions[max(0, index - 4) : index] if isinstance(step.argval, str)]
    if _LOOKUP_METHODS & set(before[-1:]) or _LOOKUP_FUNCTIONS & set(before):
        return KeyUse(reads=True)
    consumer = _find_consumer(instructions, index)
    if consumer is None:
        return KeyUse(_judge_call(instructions, index))
    name, what = consumer.opname, consumer.argrepr
    if name in ("BINARY_SUBSCR", "DELETE_SUBSCR", "CONTAINS_OP", "COMPARE_OP", "IS_OP", "GET_ITER"):
        return KeyUse(reads=True)
    if name == "BINARY_OP" and what == "[]":
        return KeyUse(reads=True)
    if name in ("STORE_SUBSCR", "BUILD_MAP", "BUILD_CONST_KEY_MAP", "MAP_ADD"):
        return KeyUse(Evidence.WRITES)
    if name.startswith(("CALL", "PRECALL")):
        return KeyUse(_judge_call(instructions, index))
    return KeyUse(Evidence.MENTIONS)


def _judge_call(instructions: list[dis.Instruction], index: int) -> Evidence:
    """Judge a call that gets the key as an argument or an argument's name, by the names that its statement loads."""
    for step in reversed(instructions[:index]):
        if step.opname.startswith(("STORE_FAST", "STORE_SUBSCR", "POP_TOP", "RETURN", "STORE_NAME")):
            break
        if step.argval in _WRITERS:
            return Evidence.WRITES
    return Evidence.MENTIONS


def _find_consumer(instructions: list[dis.Instruction], index: int) -> dis.Instruction | None:
    """Return the instruction that takes what another one pushed; None if a jump comes first."""
    depth = 1
    for step in instructions[index + 1 :]:
        if "JUMP" in step.opname or step.opname.startswith(("RETURN", "RAISE", "FOR_ITER")):
            return None
        try:
            effect = dis.stack_effect(step.opcode, step.arg)
        except ValueError:
            return None
        depth += effect
        if depth - _count_pushed(step, effect) < 1:
            return step
    return None


def _count_pushed(step: dis.Instruction, effect: int) -> int:
    """Return how many values an instruction pushes."""
    name = step.opname
    if name.startswith(
        ("STORE_", "DELETE_", "POP_", "LIST_", "SET_", "MAP_", "DICT_", "KW_NAMES", "PRECALL")
    ):
        return 0
    if name in ("LOAD_ATTR", "LOAD_METHOD"):
        return effect + 1
    if name.startswith("LOAD_") and not name.startswith("LOAD_SUPER"):
        return effect
    return 1


def _writes_computed_key(scope: Scope, instructions: list[dis.Instruction], index: int) -> bool:
    step = instructions[index]
    if step.opname == "STORE_SUBSCR" and index:
        before = instructions[index - 1]
        if before.opname.startswith(
            ("LOAD_CONST", "LOAD_SMALL_INT", "COMPARE", "UNARY", "BUILD_TUPLE", "BUILD_SLICE")
        ):
            return False
        value = _read_pushed(scope, before)
        return value is None or value is _MISSING
    if step.opname in ("MAP_ADD", "DICT_UPDATE"):
        return True
    if step.opname == "BINARY_OP":
        return step.argrepr in ("|", "|=")
    if step.opname in ("BINARY_OR", "INPLACE_OR"):
        return True
    return step.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_GLOBAL") and step.argval in _COMPUTED_WRITERS


# Names


def name_function(function: Any) -> str:
    """Name a function or callable object as ``name (file:line)``."""
    scopes = find_scopes(function)
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{name} ({name_place(scopes[0].code, scopes[0].code.co_firstlineno)})" if scopes else str(name)


def name_scope(scope: Scope) -> str:
    """Name the function of a scope as ``name (file:line)``."""
    return f"{scope.name} ({name_place(scope.code, scope.code.co_firstlineno)})"


def qualify(code: CodeType, owner: Any = None) -> str:
    """Return the qualified name of code. Python 3.10 does not store it, so there it is looked up in the owner."""
    if (name := getattr(code, "co_qualname", None)) is not None:
        return str(name)
    for kind in type(owner).__mro__:
        function = vars(kind).get(code.co_name)
        if isinstance(function, FunctionType) and function.__code__ is code:
            return function.__qualname__
    return code.co_name


def name_place(code: CodeType, line: int) -> str:
    """Return file and line."""
    return f"{shorten_path(code.co_filename)}:{line}"


def shorten_path(path: str) -> str:
    """Return a path that starts at the installed package, or at the working directory, or is absolute."""
    for root in ("site-packages" + os.sep, "dist-packages" + os.sep):
        if root in path:
            return path.rpartition(root)[2]
    relative = os.path.relpath(path) if os.path.isabs(path) else path
    return path if relative.startswith("..") else relative
