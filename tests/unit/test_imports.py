"""Who may import whom, and what nobody may import; read from the sources, so nothing has to run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each package with those of ours it may import; deploy, benchmarks and the command line are on top.
MAY_IMPORT = {
    "stream": {"stream"},
    "detector": {"detector", "stream"},
    "training": {"training", "detector", "stream"},
}
OURS = {*MAY_IMPORT, "deploy", "benchmarks", "telltale", "tests"}
# Services of the control plane, where faust may be used; the data plane never touches it.
CONTROL_PLANE = {"stream/incidents.py"}
UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def sources(*packages):
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    assert found, packages
    return found


PRODUCT = [*sources("stream", "detector", "training", "deploy"), ROOT / "telltale.py"]
EVERYTHING = [*PRODUCT, *sources("tests"), *(ROOT / "benchmarks").rglob("*.py")]


def name_of(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Return the dotted names that a file imports, wherever in it, relative ones made absolute."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.relative_to(ROOT).parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (package, node.module) if part)
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def tops(path):
    return {name.split(".")[0] for name in imported(path)}


def used_names(path):
    """Return the dotted names that a file's code mentions, such as `torch.load`."""
    return {ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


each_product_file = pytest.mark.parametrize("path", PRODUCT, ids=name_of)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_from_training_to_detector_to_stream(package):
    forbidden = OURS - MAY_IMPORT[package]
    wrong = {name_of(path): tops(path) & forbidden for path in sources(package) if tops(path) & forbidden}
    assert wrong == {}


def test_the_product_does_not_import_its_tests():
    assert [name_of(path) for path in PRODUCT if "tests" in tops(path)] == []


@pytest.mark.parametrize("path", sources("stream"), ids=name_of)
def test_stream_does_not_know_torch(path):
    assert tops(path) & {"torch", "safetensors", "sklearn"} == set()


@pytest.mark.parametrize("path", [p for p in PRODUCT if name_of(p) not in CONTROL_PLANE], ids=name_of)
def test_the_data_plane_does_not_know_faust(path):
    assert tops(path) & {"faust", "aiokafka", "mode"} == set()


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_nothing_is_unpickled(path):
    """A checkpoint is data; loading one must not be able to run anything."""
    assert tops(path) & UNSAFE == set()
    assert used_names(path) & {"torch.load", "torch.jit.load", "torch.hub.load", "np.load", "numpy.load"} == set()


@each_product_file
def test_nothing_is_pickled(path):
    assert used_names(path) & {"torch.save", "np.save", "np.savez"} == set()


def calls(path, name):
    tree = ast.parse(path.read_text())
    return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == name]


@each_product_file
def test_no_class_is_chosen_by_a_string_and_no_text_is_run(path):
    assert calls(path, "exec") + calls(path, "__import__") + calls(path, "import_module") == []
    assert [c for c in calls(path, "eval") if isinstance(c.func, ast.Name)] == []  # a network has a method of that name


@each_product_file
def test_no_number_is_made_up_and_no_failure_swallowed(path):
    assert calls(path, "nan_to_num") == []
    handlers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)]
    silent = [h for h in handlers if all(isinstance(s, ast.Pass) for s in h.body)]
    broad = [h for h in handlers if h.type is None or ast.unparse(h.type) in ("Exception", "BaseException")]
    assert [h.lineno for h in silent if h in broad] == []
    assert [h.lineno for h in handlers if h.type is None] == []


MODULE_LEVEL = (
    ast.Import | ast.ImportFrom | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
)


@pytest.mark.parametrize("path", sources("stream", "detector", "training", "deploy"), ids=name_of)
def test_nothing_runs_at_import(path):
    """Modules define; only docstrings, `__main__` guards and type-checking imports stand beside that."""
    for node in ast.parse(path.read_text()).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")
        assert isinstance(node, MODULE_LEVEL) or docstring or guard, f"{name_of(path)}:{node.lineno}"


@pytest.mark.parametrize("package", ["stream", "detector", "training", "deploy"])
def test_importing_a_package_is_cheap(package):
    code = f"import {package}, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "confluent_kafka", "redis", "pyarrow", "pydantic", "sklearn"}
    assert set(loaded.stdout.split()) & heavy == set()


def test_the_whole_of_stream_comes_without_torch():
    modules = ", ".join(f"stream.{path.stem}" for path in sources("stream") if path.stem != "__init__")
    code = f"import {modules}; import sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stderr == ""
    assert "stream.windower" in loaded.stdout.split()
    assert set(loaded.stdout.split()) & {"torch", "detector", "training", "deploy", "faust"} == set()
