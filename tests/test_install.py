"""The requirements files, and the installation from them."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.install import FOREIGN, make_uv_environment, read_pip_settings

INSTALL = Path("tools/install.py").resolve()
FILES = ("requirements.txt", "requirements-tools.txt", "requirements-dev.txt")


def read_pins(file):
    """Return the version of each package that a requirements file pins for this system."""
    lines = re.findall(r"^(\w[^\\\n]*)", Path(file).read_text(), re.M)
    pins = [Requirement(line) for line in lines]
    return {
        canonicalize_name(pin.name): str(pin.specifier)
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }


def find_needed(requirements):
    """Return the names of all packages that `requirements` need on this system."""
    found = set()
    left = [(text, [""]) for text in requirements]
    while left:
        text, extras = left.pop()
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        if (name, *requirement.extras) not in found:
            found.add((name, *requirement.extras))
            children = distribution(name).requires or []
            left += [(child, ["", *requirement.extras]) for child in children]
    return {name for name, *_ in found}


def test_dependencies_are_what_stages_import():
    imported = set()
    for path in Path("stages").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "stages"}
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    listed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, project["dependencies"])
        if requirement.marker is None or requirement.marker.evaluate()
    }
    packages = packages_distributions()
    used = {name: listed & set(map(canonicalize_name, packages[name])) for name in imported}
    assert all(used.values()), used
    assert set.union(*used.values()) == listed


@pytest.mark.parametrize("file", FILES)
def test_file_pins_all_that_its_packages_need(file):
    project = tomllib.loads(Path("pyproject.toml").read_text())
    groups = {
        "requirements.txt": project["project"]["dependencies"],
        "requirements-tools.txt": project["dependency-groups"]["tools"],
        "requirements-dev.txt": project["dependency-groups"]["dev"],
    }
    assert find_needed(groups[file]) == set(read_pins(file))


def test_files_agree_on_versions():
    stages, tools, dev = map(read_pins, FILES)
    merged = {**dev, **tools, **stages}
    for pins in (stages, tools, dev):
        assert pins == {name: merged[name] for name in pins}


@pytest.mark.parametrize("file", FILES)
def test_file_has_a_hash_for_every_package_and_no_address(file):
    text = Path(file).read_text()
    assert "://" not in text
    assert "--" not in text.replace("--hash=sha256:", "")  # no option such as --index-url
    pinned = re.findall(r"^\w.*?==.*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.M)
    assert len(pinned) == len(re.findall(r"^\w", text, re.M)) > 0


def test_pip_settings_become_variables_of_uv(monkeypatch):
    settings = read_pip_settings(
        ":env:.index-url='https://b.example/simple'\n"
        "global.extra-index-url='file:///one\\nfile:///two'\n"
        "global.find-links='/a /b'\n"
        "global.index-url='https://a.example/simple'\n"
        "install.no-index='true'\n"
    )
    monkeypatch.setenv("UV_FIND_LINKS", "/mine")
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name in FOREIGN:
        monkeypatch.setenv(name, "1")
    environment = make_uv_environment(settings)
    assert settings["no-index"] == "true"
    assert environment["UV_DEFAULT_INDEX"] == "https://b.example/simple"
    assert environment["UV_INDEX"] == "file:///one file:///two"
    assert environment["UV_FIND_LINKS"] == "/mine"
    assert not environment.keys() & set(FOREIGN)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sys.version_info = (3, 10)", "is Python 3.10, but this project needs Python 3.11"),
        ("sys.modules['sqlite3'] = sys.modules['bz2'] = None", "was built without bz2, sqlite3."),
        ("sys.modules['ensurepip'] = None", "apt-get install python3."),
    ],
)
def test_unsuitable_python_is_refused_in_one_line(tmp_path, change, said):
    code = f"import runpy, sys; {change}; runpy.run_path({str(INSTALL)!r}, run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_moved_venv_is_refused(tmp_path):
    """The commands in .venv name the folder they were installed into."""
    for file in ("Makefile", "requirements.txt", "requirements-tools.txt"):
        shutil.copy(file, tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/runtime").write_text("/elsewhere/.venv /usr/bin/python3.11\n")
    ended = subprocess.run(
        ["make", "doctor"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "rm -rf .venv" in ended.stderr


@pytest.mark.slow
@pytest.mark.network
def test_user_settings_do_not_redirect_installation(tmp_path):
    """The home folder cannot be written to either, as in some containers."""
    shutil.copy("requirements-tools.txt", tmp_path)
    pin = re.search(r"^six==.*\n(?:    --hash.*\n)+", Path("requirements.txt").read_text(), re.M)
    (tmp_path / "six.txt").write_text(pin[0])
    other = str(tmp_path / "other")
    (tmp_path / "constraint.txt").write_text("uv==0.1.0\nsix==1.0\n")
    pip = {
        "PIP_USER": "1",
        "PIP_TARGET": other,
        "PIP_PREFIX": other,
        "PIP_ROOT": other,
        "PIP_NO_BINARY": ":all:",
        "PIP_CONSTRAINT": str(tmp_path / "constraint.txt"),
        "PIP_PYTHON": "/usr/bin/false",
        "PIP_PLATFORM": "win32",
        "PIP_REQUIRE_VIRTUALENV": "1",
    }
    uv = {
        "UV_CONSTRAINT": str(tmp_path / "constraint.txt"),
        "UV_EXCLUDE_NEWER": "2000-01-01",
        "UV_PROJECT": other,
        "UV_PYTHON": "2.7",
        "UV_SYSTEM_PYTHON": "1",
        "VIRTUAL_ENV": other,
    }
    home = {"HOME": "/proc/none", "XDG_CACHE_HOME": ""}

    subprocess.run(
        [sys.executable, INSTALL, "six.txt"],
        cwd=tmp_path,
        env={**os.environ, **pip, **uv, **home},
        check=True,
    )
    assert list((tmp_path / ".venv/lib").glob("python3.*/site-packages/six.py"))
    assert not Path(other).exists()


def test_makefile_runs_modules_that_exist():
    modules = re.findall(r"python -m ([\w.]+)", Path("Makefile").read_text())
    assert "tools.recipe" in modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
