"""The house rules that a machine can see: layers, public names, import cost, docstrings, what no module may do."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dhlab

ROOT = Path(__file__).parents[1]
STUB = ROOT / "dhlab" / "__init__.pyi"
SOURCES = sorted((ROOT / "dhlab").rglob("*.py"))
MOST_POSITIONAL = 3
# Measured: 8. One library too many brings hundreds.
MOST_MODULES = 60
HEAVY = {"cv2", "matplotlib", "numpy", "onnx", "shapely", "tensorstore", "tifffile", "torch", "triton", "zarr"}


def stub_names() -> list[str]:
    """Return the names that ``dhlab/__init__.pyi`` offers."""
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    return sorted(alias.asname or alias.name for node in imports for alias in node.names)


NAMES = stub_names()


def public_objects() -> Iterator[tuple[str, Any]]:
    """Yield every public function and class: those of dhlab, and those of its public modules."""
    for name in NAMES:
        thing = getattr(dhlab, name)
        if not isinstance(thing, ModuleType):
            yield f"dhlab.{name}", thing
            continue
        for member in getattr(thing, "__all__", ()):
            if callable(inner := getattr(thing, member)):
                yield f"dhlab.{name}.{member}", inner


def public_callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield every public function and every public method that dhlab itself defines."""
    for name, thing in public_objects():
        if not inspect.isclass(thing):
            yield name, thing
            continue
        for member, method in vars(thing).items():
            function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
            if inspect.isfunction(function) and not member.startswith("_"):
                yield f"{name}.{member}", function


def parameters(thing: Callable[..., Any]) -> list[inspect.Parameter]:
    found = inspect.signature(thing).parameters.values()
    return [p for p in found if p.name not in ("self", "cls") and p.name[0] != "_" and p.kind is not p.VAR_KEYWORD]


def described(thing: Any) -> dict[str, str]:
    """Return what the numpydoc sections of parameters and attributes say of each name."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following.startswith("---"):
            inside = line in ("Parameters", "Other Parameters", "Attributes")
        elif inside and line and not line.startswith((" ", "---")):
            names = [name.strip().lstrip("*") for name in line.split(":")[0].split(",")]
            found |= dict.fromkeys(names, "")
        elif inside and line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def said_of(thing: Any, name: str) -> str:
    """Return what the docstring says of a parameter; a method of one or two may say it in its first sentences."""
    known, text = described(thing), inspect.getdoc(thing) or ""
    if not known and len(parameters(thing)) <= 2 and re.search(rf"\b{re.escape(name)}\b", text):
        return text
    return known.get(name, "")


def documented() -> Iterator[tuple[str, Any]]:
    """Yield everything public whose parameters a user meets; an exception has only its message."""
    for name, thing in [*public_objects(), *public_callables()]:
        if not (inspect.isclass(thing) and issubclass(thing, Exception)):
            yield name, thing


def test_layers_and_rooms() -> None:
    """Nobody imports upwards or enters another's room: the contracts of import-linter in pyproject.toml."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    done = subprocess.run([*command, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_layers_is_the_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    stated = {contract["id"]: contract["layers"] for contract in settings if contract["type"] == "layers"}
    rows = re.findall(r"^\| \d \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE)
    told = [layer for row in rows for layer in row.split(" above ")]
    wanted = [stated["extensions"][0], *stated["layers"]]
    assert [set(re.findall(r"\w+", layer)) for layer in told] == [set(re.findall(r"\w+", layer)) for layer in wanted]


def test_the_stub_lists_the_public_names() -> None:
    assert sorted(dhlab.__all__) == NAMES
    assert set(NAMES) <= set(dir(dhlab))


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_resolves(name: str) -> None:
    thing = getattr(dhlab, name)
    if not isinstance(thing, ModuleType):
        assert thing.__name__ == name, "one thing has one name"
        # A function named like its module would hide the module under lazy loading.
        assert thing.__module__.rsplit(".", 1)[-1] != name


def test_import_is_quick() -> None:
    """``import dhlab`` brings no heavy library and few modules; its time is printed, never asserted."""
    program = (
        "import sys, time, json; before = set(sys.modules); start = time.perf_counter(); import dhlab; "
        "seconds = time.perf_counter() - start; print(json.dumps([seconds, sorted(set(sys.modules) - before)]))"
    )
    seconds, modules = json.loads(subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True))
    print(f"import dhlab: {seconds * 1000:.0f} ms, {len(modules)} modules")
    assert HEAVY.isdisjoint(module.split(".")[0] for module in modules)
    assert len(modules) <= MOST_MODULES, modules


def test_the_compiler_is_loaded_by_those_who_compile() -> None:
    """Torch's compiler takes seconds to import; every kernel, worker and command would pay them."""
    program = "import sys, dhlab.models, dhlab.training, dhlab.inference; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.check_call([sys.executable, "-c", program], cwd=ROOT)


def test_public_things_are_documented() -> None:
    faults = [f"{name}: no docstring" for name, thing in public_objects() if not inspect.getdoc(thing)]
    for name, thing in documented():
        faults += [f"{name}: say what {p.name} is" for p in parameters(thing) if not said_of(thing, p.name)]
    assert not faults, "\n".join(dict.fromkeys(faults))


def test_arrays_come_with_shapes_and_lengths_with_units() -> None:
    faults = []
    for name, thing in documented():
        for parameter in parameters(thing):
            text, kind = said_of(thing, parameter.name), str(parameter.annotation)
            array = re.search(r"\b(Tensor|NDArray|ndarray|ArrayLike)\b", kind)
            if array and not re.search(r"\([^)]*,|\([A-Z]\)|shape|ax[ie]s|indices|one per|scalar", text, re.IGNORECASE):
                faults.append(f"{name}: say the shape of the array {parameter.name}")
            if parameter.name == "spacing" and not re.search(r"µm|\bmm\b|unit|physical", text, re.IGNORECASE):
                faults.append(f"{name}: say the unit of {parameter.name}")
    assert not faults, "\n".join(dict.fromkeys(faults))


def test_few_positional_parameters() -> None:
    faults = []
    for name, thing in public_callables():
        positional = [p.name for p in parameters(thing) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(positional) > MOST_POSITIONAL:
            faults.append(f"{name}: {positional}; make all after the third keyword-only")
    assert not faults, "\n".join(faults)


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every call and attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def safe_loads(tree: ast.AST) -> set[int]:
    """Return the lines on which ``torch.load`` is told to take nothing but tensors."""
    return {
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords)
    }


def test_nothing_runs_text_or_unpickles() -> None:
    """A file from elsewhere must never run as code."""
    banned = {"eval", "exec", "joblib.load", "pickle.Unpickler", "pickle.load", "pickle.loads", "torch.load"}
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        for line, name in calls(ast.parse(path.read_text()))
        if name in banned and not (name == "torch.load" and line in safe_loads(ast.parse(path.read_text())))
    ]
    assert not faults, "\n".join(faults)


def test_one_module_reads_the_environment() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: {name}; give the variable a line in dhlab/env.py"
        for path in SOURCES
        if path.name != "env.py"
        for line, name in calls(ast.parse(path.read_text()))
        if name in {"os.environ", "os.getenv", "os.putenv"}
    ]
    assert not faults, "\n".join(faults)


def test_every_module_says_what_it_is() -> None:
    faults = [str(path.relative_to(ROOT)) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not faults, f"no docstring: {faults}"


def test_no_open_ends_in_comments() -> None:
    words = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    faults = []
    for path in [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]:
        with tokenize.open(path) as file:
            comments = [t for t in tokenize.generate_tokens(file.readline) if t.type == tokenize.COMMENT]
        faults += [f"{path.relative_to(ROOT)}:{t.start[0]}: {t.string}" for t in comments if words.search(t.string)]
    assert not faults, "\n".join(faults)
