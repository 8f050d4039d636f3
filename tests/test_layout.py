"""Which modules may import which others, and what may happen at import."""

import ast
from graphlib import TopologicalSorter

from helpers.project import ROOT, read_graph

# What each top-level folder may import of the project, and each folder of stages of stages.
PACKAGES = {
    "stages": {"stages"},
    "dvc_verify": {"dvc_verify"},
    "tools": {"stages", "dvc_verify", "tools"},
    "benchmarks": {"stages", "dvc_verify", "tools", "benchmarks"},
}
FOLDERS = {
    "core": {"core"},
    "sources": {"core", "sources"},
    "model": {"core", "model"},
    "cluster": {"core", "model", "cluster"},
}
ALL = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_bytes())
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
}
MODULES = {name: tree for name, tree in ALL.items() if name.startswith("stages.")}


def list_imports(module: str) -> set[str]:
    """Return the project's modules that a module imports, at the top or in a function."""
    names = set()
    for node in ast.walk(ALL[module]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & ALL.keys()


def test_modules_import_only_what_is_below_them():
    for module in ALL:
        package, folder, *_ = [*module.split("."), ""]
        imports = list_imports(module)
        assert {name.split(".")[0] for name in imports} <= PACKAGES[package], module
        if package == "stages" and folder in FOLDERS:
            assert {name.split(".")[1] for name in imports} <= FOLDERS[folder], module


def test_imports_have_no_cycle():
    order = list(TopologicalSorter({name: list_imports(name) for name in ALL}).static_order())
    assert order.index("stages.core.files") < order.index("stages.sources.fetch")


def test_scripts_do_not_import_each_other():
    scripts = {name for name in MODULES if name.count(".") == 1} - {"stages.__init__"}
    assert scripts == {f"stages.{stage}" for stage in read_graph()}
    for script in scripts:
        assert not list_imports(script) & scripts, script


def test_import_only_defines_names():
    """Only stages/core/environment.py changes the process."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    allowed = (*functions, ast.Import, ast.ImportFrom, ast.ClassDef, ast.Assign, ast.AnnAssign)
    modules = [tree for name, tree in MODULES.items() if name != "stages.core.environment"]
    for node in (node for tree in modules for node in tree.body):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        )
        assert isinstance(node, allowed) or docstring or guard, ast.unparse(node)
