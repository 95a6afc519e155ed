"""Calls for `test_fuzz.py`: made from the public signatures, of values that are source text.

A failing call prints as one line, to be pasted after `from fuzzing import *` in this folder.
"""

import contextlib
import functools
import inspect
import re
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction  # noqa: F401 - of the values
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import nopr
from nopr import (
    algorithms,
    budgets,
    capture,
    criteria,
    data,
    densities,
    export,
    finetune,
    granularity,
    information,
    isometry,
    masks,
    networks,
    pruning,
    reconstruct,
    schedules,
    spectra,
    surgery,
    sweeps,
    transforms,
    trees,
)
from nopr.data import synthetic
from nopr.lab import checkpoints, records, settings, tables

MODULES = (
    *(algorithms, budgets, capture, criteria, data, densities, export, finetune, granularity),
    *(
        information,
        isometry,
        masks,
        networks,
        pruning,
        reconstruct,
        schedules,
        spectra,
        surgery,
        sweeps,
    ),
    *(synthetic, transforms, trees),
)
LAB = {
    checkpoints: ("restore", "save", "steps"),
    records: ("Store",),
    settings: ("config", "parse_length", "read"),
    tables: ("aligned", "interval_text", "lay_out", "mean_interval", "number_text"),
}
LIMIT_SECONDS = 20
USER = "<user>"

# --- Values ------------------------------------------------------------------------------------

nan, inf = float("nan"), float("inf")
KEY = jax.random.key(7)
KEYS = jax.random.split(KEY, 3)
LAYERS = ("layer_0/kernel", "layer_1/kernel")
PATHS = list(LAYERS)


def _tree(first: Any, second: Any, *biases: Any) -> dict[str, Any]:
    one, two = biases or (None, None)
    return {"layer_0": {"kernel": first, "bias": one}, "layer_1": {"kernel": second, "bias": two}}


_draw = np.random.default_rng(3).standard_normal
PARAMS = _tree(*(jnp.asarray(_draw(s), jnp.float32) for s in ((4, 3), (3, 2), (3,), (2,))))
SCORES = _tree(*(jnp.asarray(_draw(s), jnp.float32) for s in ((4, 3), (3, 2))))
TIES = jax.tree.map(jnp.rint, SCORES)
FULL = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), SCORES)
KEPT = _tree(jnp.arange(12).reshape(4, 3) % 3 < 2, jnp.arange(6).reshape(3, 2) % 2 == 0)
UNITS = _tree(jnp.ones((4, 3), bool).at[:, 1].set(False), jnp.ones((3, 2), bool).at[1].set(False))
EMPTY = jax.tree.map(jnp.zeros_like, FULL)
DUPLICATE = {"layer_0/kernel": jnp.ones((4, 3)), "layer_0": {"kernel": jnp.ones((4, 3))}}
X = jnp.asarray(_draw((5, 4)), jnp.float32)
LABELS = jnp.array([0, 1, 1, 0, 1])
BATCH = (X, LABELS)
DATASETS = (jnp.stack([X, -X, X]), jnp.stack([LABELS] * 3))
CASES = {"x": jnp.arange(6.0).reshape(3, 2)}
IMAGES = jnp.asarray(_draw((2, 5, 5, 2)), jnp.float32)
KERNEL = jnp.asarray(_draw((3, 3, 2, 4)), jnp.float32)
ROWS = [{"name": "snip", "accuracy": 97.25}, {"name": "imp", "accuracy": tables.Missing("slow")}]
COLUMNS = [tables.Column("name", "method"), tables.Column("accuracy", "test\n(%)", 2)]


def changed(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A tree with its first kernel changed."""
    first = tree["layer_0"]
    return {**tree, "layer_0": {**first, "kernel": change(first["kernel"])}}


def to(dtype: Any) -> Callable[[Any], Any]:
    return lambda w: np.asarray(w, dtype) if dtype == "float64" else jnp.asarray(w).astype(dtype)


def holding(value: float) -> Callable[[Any], Any]:
    return lambda w: jnp.asarray(w, jnp.float32).at[0, 0].set(value)


def numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


def traced(function: Callable[[Any], Any], value: Any) -> Any:
    """The result of a function of a traced value, without the compilation of a `jit`."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], value)
    return jax.tree.map(lambda leaf: leaf[0], jax.vmap(function)(one))


def folder() -> str:
    return tempfile.mkdtemp(prefix="fuzz-")


def saved(form: str = "masks", *, damaged: bool = False) -> str:
    """The path of a file of `export`."""
    path = Path(folder()) / form
    if form == "masks":
        export.save_masks(KEPT, path)
    else:
        save = export.save_pruned if form == "pruned" else export.save_safetensors
        save(PARAMS, KEPT, path)
    if damaged:
        path.write_bytes(path.read_bytes()[:-1])
    return str(path)


def apply(params: Any, inputs: Any) -> Any:
    hidden = jax.nn.relu(inputs @ params["layer_0"]["kernel"] + params["layer_0"]["bias"])
    return hidden @ params["layer_1"]["kernel"] + params["layer_1"]["bias"]


def init(key: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(key, leaf.shape), PARAMS)


def case_sum(case: Any, shared: Any = 0.0) -> Any:
    return {"sum": jnp.sum(case["x"]) + jnp.sum(shared)}


class Memory(dict):
    """A store of arrays."""

    def put(self, name: str, arrays: Any) -> None:
        self[name] = arrays


NET = networks.mlp((3, 2), inputs=4)
LOSS = finetune.cross_entropy(apply)
STEP_LOSS = finetune.stateless(LOSS)
TX = optax.sgd(0.1)
CRITERION = criteria.magnitude()
PRUNER = pruning.pruner(CRITERION, density=0.5)
TRAIN = finetune.gradient_descent(LOSS, steps=1, learning_rate=0.1)
ALGORITHM = algorithms.at_init(PRUNER, init=init)
CARRY = finetune.start(PARAMS, KEPT, tx=TX, key=KEY)
FITTED = TRAIN(PARAMS, KEPT, BATCH, key=KEY)
MESH = jax.make_mesh((1, 1), ("batch", "runs"))

# --- Pools: the good and the hostile values of a parameter --------------------------------------

_WRONG = ("None", "'x'", "nan", "3", "jnp.ones(2)", "jnp.array(nan)", "{}", "jnp.ones((7, 7))")


@functools.cache
def pools() -> dict[str, tuple[list[str], list[str]]]:
    """The tables of `fuzz_values.txt`, by the name of a parameter."""
    text = re.sub(
        r"^#.*\n", "", Path(__file__).with_name("fuzz_values.txt").read_text(), flags=re.M
    )
    rows = [line.partition(": ")[::2] for line in re.sub(r"\n +", " ", text).split("\n") if line]
    lists = {name: values for name, values in rows if name.startswith("&")}
    found = {}
    for names, values in rows:
        if not names.startswith("&"):
            good, _, hostile = values.partition(" |")
            pair = _each(good, lists), _each(hostile, lists) or _each(good, lists)
            found.update(dict.fromkeys(names.split(), pair))
    return found


def _each(values: str, lists: dict[str, str]) -> list[str]:
    """The values of a row, with the lists that it names."""
    found = []
    for value in filter(None, map(str.strip, values.split("; "))):
        name, _, argument = value.partition("(")
        argument = argument.removesuffix(")")
        if not value.startswith("&"):
            found.append(value)
        elif name == "&trees":
            found += _each(lists[name].replace("TREE", argument), lists)
            found += [f"changed({argument}, {each})" for each in _each(lists["&changes"], lists)]
        elif name == "&functions":
            found += _each(lists[name], lists) + [f"lambda {argument}: {each}" for each in _WRONG]
        else:
            found += _each(lists[name], lists)
    return found


# --- Calls -------------------------------------------------------------------------------------

_MAKES = re.compile(
    r"(?:optax\.)?(Callable|Store|Criterion|Pruner|Algorithm|Loss|StepLoss|Schedule|Granularity|"
    "GradientTransformation|Network)"
)
_ONE_OF = {
    "masks.top": ("density", "count"),
    "budgets.kept": ("density", "count"),
    "criteria.average": ("keys", "stacked"),
    "finetune.gradient_descent": ("learning_rate", "tx"),
}
_TRACED = {
    *("scores", "density", "count", "masks", "params", "inputs", "values", "batch", "data", "key"),
    *("updates", "granule_masks", "step", "alive", "outs", "kernel"),
}
METHODS = {
    granularity.Granularity: ("pool", "expand"),
    optax.GradientTransformationExtraArgs: ("init", "update"),
    networks.Network: ("init", "apply"),
    records.Store: ("put", "get", "remove"),
}


class Argument(NamedTuple):
    name: str
    text: str
    hostile: bool
    by_name: bool


class Call(NamedTuple):
    """One call of a function, which may be the result of another call."""

    owner: str
    target: str  # the source text of the function
    arguments: tuple[Argument, ...]
    traced: int | None  # the argument that is traced

    @property
    def text(self) -> str:
        def written(words: list[str]) -> str:
            pairs = zip(self.arguments, words, strict=True)
            return ", ".join(f"{a.name}={word}" if a.by_name else word for a, word in pairs)

        words = [a.text for a in self.arguments]
        if self.traced is None:
            return f"{self.target}({written(words)})"
        held, words[self.traced] = words[self.traced], "x"
        return f"traced(lambda x: {self.target}({written(words)}), {held})"


class Outcome(NamedTuple):
    """What came of a call, and of the calls that made its function."""

    calls: tuple[Call, ...]
    values: tuple[dict[str, Any], ...]  # the arguments of each
    result: Any
    error: BaseException | None

    @property
    def line(self) -> str:
        """The source text of the whole call."""
        return self.calls[-1].text

    @property
    def hostile(self) -> bool:
        return any(a.hostile for call in self.calls for a in call.arguments)


def public() -> dict[str, Callable[..., Any]]:
    """The public functions by `module.name`, as they are in this moment."""
    found = {}
    for module in MODULES:
        name = module.__name__.rpartition(".")[2]
        own = [
            k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
        ]
        for each in getattr(module, "__all__", own):
            if inspect.isfunction(getattr(module, each)) and not each.startswith("_"):
                found[f"{name}.{each}"] = getattr(module, each)
    for module, names in LAB.items():
        short = module.__name__.rpartition(".")[2]
        found |= {f"{short}.{name}": getattr(module, name) for name in names}
    return found


def evaluated(text: str) -> Any:
    return eval(_compiled(text), globals())


@functools.cache
def _compiled(text: str) -> Any:
    return compile(text, USER, "eval")


def lookup(owner: str, parameter: str) -> tuple[list[str], list[str]]:
    """The good and the hostile values of a parameter."""
    for name in (f"{owner}.{parameter}", f"{owner.partition('.')[0]}.{parameter}", parameter):
        if name in pools():
            return pools()[name]
    raise LookupError(
        f"No values are known for `{parameter}` of {owner}. Add a line "
        f"`{owner}.{parameter}: good | hostile` to tests/fuzz_values.txt."
    )


def drawn(rng: Any, owner: str, target: str, function: Callable[..., Any], hostile: int) -> Call:
    """A call of a function, with so many hostile arguments."""
    own = owner != "sweeps.vmap_lanes()"  # which has the signature of the function it was given
    parameters = [
        p
        for p in inspect.signature(function, follow_wrapped=own).parameters.values()
        if p.kind is not p.VAR_KEYWORD and not p.name.startswith("_")
    ]
    group = _ONE_OF.get(owner, ())
    one = rng.choice(group) if group else None
    given = {
        p.name
        for p in parameters
        if p.default is p.empty or p.name == one or (p.name not in group and rng.random() < 0.35)
    }
    others = [p.name for p in parameters if p.name not in group or p.name == one]
    bad = set(rng.sample(others, min(hostile, len(others))))
    arguments, by_name = [], False
    for p in parameters:
        if p.name not in given | bad:
            by_name = True
            continue
        for _ in range(rng.choice((0, 1, 2)) if p.kind is p.VAR_POSITIONAL else 1):
            text = rng.choice(lookup(owner, p.name)[p.name in bad])
            named = p.kind is p.KEYWORD_ONLY or (by_name and p.kind is p.POSITIONAL_OR_KEYWORD)
            arguments.append(Argument(p.name, text, p.name in bad, named))
    if arguments and rng.random() < 0.02:  # one is missing
        place = rng.randrange(len(arguments))
        rest = [a._replace(by_name=True) for a in arguments[place + 1 :]]
        if all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            arguments[place:] = rest
    swaps = not owner.startswith(
        ("budgets", "tables", "pruning.check", "trees.largest", "granularity.inp")
    )
    if (
        swaps and len(arguments) > 1 and not arguments[1].by_name and rng.random() < 0.02
    ):  # two are swapped
        one, two = arguments[:2]
        arguments[:2] = [one._replace(text=two.text, hostile=True), two._replace(text=one.text)]
    can = [i for i, argument in enumerate(arguments) if argument.name in _TRACED]
    traced = rng.choice(can) if can and rng.random() < 0.12 else None
    return Call(owner, target, tuple(arguments), traced)


def made(rng: Any, owner: str, function: Callable[..., Any]) -> Outcome:
    """Draws a call and makes it; then calls what it returns, if that is a function."""
    hostile = rng.choice((0, 1, 1, 1, 1, 1, 2, 2))
    returns = (
        "Store" if inspect.isclass(function) else inspect.signature(function).return_annotation
    )
    chain = _MAKES.match(str(returns))
    first = rng.choice((0, hostile)) if chain else hostile
    outcome = run(Outcome((), (), None, None), function, drawn(rng, owner, owner, function, first))
    if outcome.error is not None or not chain:
        return outcome
    maker = outcome.result
    if isinstance(maker, networks.Network) and owner != "networks.mlp":
        return outcome  # the others take seconds to draw
    methods = next((names for kind, names in METHODS.items() if isinstance(maker, kind)), ("",))
    method = rng.choice(methods)
    kind = f"{type(maker).__name__}.{method}" if method else f"{owner}()"
    text = outcome.line + (f".{method}" if method else "")
    function = getattr(maker, method) if method else maker
    if not callable(function):
        return outcome
    call = drawn(rng, kind, text, function, hostile - first)
    return run(outcome, function, call)


def run(before: Outcome, function: Callable[..., Any], call: Call) -> Outcome:
    """Makes a call and keeps its result or its error."""
    values: dict[str, Any] = {}
    args, kwargs = [], {}
    for argument in call.arguments:
        value = evaluated(argument.text.replace("RESULT", call.target.rpartition(".")[0]))
        values[argument.name] = value
        if argument.by_name:
            kwargs[argument.name] = value
        else:
            args.append(value)
    outcome = Outcome((*before.calls, call), (*before.values, values), None, None)
    try:
        with limited(LIMIT_SECONDS):
            if call.traced is None:
                result = function(*args, **kwargs)
            else:
                result = _traced_call(function, args, kwargs, call)
            jax.block_until_ready(
                [leaf for leaf in jax.tree.leaves(result) if hasattr(leaf, "dtype")]
            )
    except Exception as error:
        return outcome._replace(error=error)
    return outcome._replace(result=result)


def _traced_call(function: Any, args: list[Any], kwargs: dict[str, Any], call: Call) -> Any:
    place, held = call.traced, call.arguments[call.traced]

    def one(x: Any) -> Any:
        if held.by_name:
            return function(*args, **{**kwargs, held.name: x})
        return function(*args[:place], x, *args[place + 1 :], **kwargs)

    return traced(one, kwargs[held.name] if held.by_name else args[place])


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what takes longer with a `TimeoutError`."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"It took more than {seconds} seconds.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- Judgment of errors ------------------------------------------------------------------------

_LIBRARY = str(Path(nopr.__file__).parent)
_KINDS = (ValueError, FloatingPointError, records.RunError)


def complaint(outcome: Outcome) -> str | None:
    """What is wrong with the error of a call; None if it is as it should be."""
    error, call = outcome.error, outcome.calls[-1]
    if error is None:
        return None
    text = str(error)
    if isinstance(error, TimeoutError):
        return "it does not end"
    if isinstance(error, TypeError) and _about_the_call(text):
        return None
    if isinstance(error, TypeError) and _names_what_was_given(text, outcome):
        return None  # a number for a function or a folder: Python's words are as good as ours
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = [i for i, file in enumerate(files) if file.startswith(_LIBRARY)]
    if not inside:
        theirs = any(map(_THEIRS.search, files))  # of a transformation that is returned as it is
        return None if theirs or call.traced is not None else "it is not raised in the library"
    if any(file in (USER, __file__) or _THEIRS.search(file) for file in files[inside[0] :]):
        return None  # raised in a function, a module or a transformation that was given
    functions = any(
        a.hostile and a.text.startswith("lambda") for c in outcome.calls for a in c.arguments
    )
    if isinstance(error, jax.errors.JAXTypeError) and (functions or call.traced is not None):
        return None  # JAX says itself what cannot be traced
    if isinstance(error, TypeError | ValueError) and _JAX.search(text):
        return None  # JAX's own words for a value that is no array, or none of its dtypes
    if not isinstance(error, _KINDS):
        return f"a {type(error).__name__} is not an error of the library"
    if not files[-1].startswith(_LIBRARY):
        return f"it is raised in {files[-1]}"
    if "\n" in text or not 20 < len(text) < 700 or not text.endswith((".", "?")):
        return "the message is not a line of sentences"
    if "NaN or infinit" in text or isinstance(error, records.RunError):
        return None  # of what was computed, or of a file
    if not (
        names() & set(re.findall(r"`([\w.]+)", text))
        or re.search(" got | at '|no setting `|Unknown", text)
    ):
        return "the message names no argument"
    if not _WANTED.search(text):
        return "the message does not say what is wanted"
    return None


_WANTED = re.compile(
    r"\b(must|needs?|[Gg]ive|Make|Check|Use|Pass|Choose|Name|Call|Rename|Fill|Round|Lower|Return|"
    r"lacks|Take|Known|[Dd]id you mean|choose|Convert|cannot|Cast|match|nearest|where|no leaves)\b"
)
_THEIRS = re.compile("/flax/|/optax/(?!losses)")
_JAX = re.compile(
    "valid JAX (array )?type|as an abstract array|truth value of an array|implicit dtype promotion|"
    "requires ndarray or scalar arguments|Cannot apply JAX transformations|Cannot interpret 'key"
)
_PYTHON = re.compile(
    r"'(?:[\w.]+\.)?(\w+)' object is not callable$|os\.PathLike object, not '?(\w+)"
)


def _names_what_was_given(text: str, outcome: Outcome) -> bool:
    """Whether Python says of a value that was given, or that a given function returned."""
    texts = [a.text for call in outcome.calls for a in call.arguments if a.hostile]
    if "not callable" in text and any(each.startswith("lambda") for each in texts):
        return True
    found = _PYTHON.search(text)
    given = {type(value).__name__ for values in outcome.values for value in values.values()}
    return found is not None and (found[1] or found[2]) in given


def _about_the_call(text: str) -> bool:
    """Python's own words for an argument that is missing or unknown."""
    return bool(re.search(r"missing \d+ required|unexpected keyword|takes .* positional", text))


@functools.cache
def names() -> set[str]:
    """The names of all public parameters, and of those of the functions that they return."""
    found = {name.rpartition(".")[2] for name in pools()}
    return found | {
        p for function in public().values() for p in inspect.signature(function).parameters
    }


# --- Numbers -----------------------------------------------------------------------------------


def leaves(value: Any) -> list[Any]:
    """The arrays and numbers in a value, also within records and lists of Python."""
    found = []
    for leaf in jax.tree.leaves(value):
        if hasattr(leaf, "__dict__") and not hasattr(leaf, "dtype"):
            continue
        if isinstance(leaf, float | complex | np.generic | np.ndarray | jax.Array):
            found.append(leaf)
    return found


def holds_nan(value: Any) -> bool:
    return any(_some(np.isnan, leaf) for leaf in leaves(value))


def is_finite(value: Any) -> bool:
    return not any(_some(lambda x: ~np.isfinite(x), leaf) for leaf in leaves(value))


def _some(test: Callable[[Any], Any], leaf: Any) -> bool:
    dtype = getattr(leaf, "dtype", np.dtype(float))
    if isinstance(leaf, jax.core.Tracer) or not jnp.issubdtype(dtype, jnp.inexact):
        return False
    return bool(np.any(test(np.asarray(leaf).astype(np.complex128))))
