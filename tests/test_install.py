"""The requirements files, and the installation from them."""

import ast
import importlib.util
import io
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dvc_verify.packages import find_changed_packages, find_extra_files
from tools import install

INSTALL = Path("tools/install.py").resolve()
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())
# What pyproject.toml lists, by the file that pins it: for stages, for tools and for tests.
LISTED = {
    "requirements.txt": PROJECT["project"]["dependencies"],
    "requirements-tools.txt": PROJECT["dependency-groups"]["tools"],
    "requirements-dev.txt": PROJECT["dependency-groups"]["dev"],
}
FILES = tuple(LISTED)


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


def find_imported(folder):
    """Return the packages that the modules in a folder import, each with its possible names."""
    imported = set()
    for path in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    imported -= {*sys.stdlib_module_names, "stages", "tools", "benchmarks", "dvc_verify", "tests"}
    packages = packages_distributions()
    return [set(map(canonicalize_name, packages[name])) for name in imported]


def test_dependencies_are_what_is_imported():
    stages, tools, dev = (
        {
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, listed)
            if requirement.marker is None or requirement.marker.evaluate()
        }
        for listed in LISTED.values()
    )
    used = [names & stages for names in find_imported("stages")]
    assert all(used)
    assert set.union(*used) == stages
    for folder in ("tools", "benchmarks", "dvc_verify"):
        unlisted = [n for n in find_imported(folder) if not n & (stages | tools | dev)]
        assert unlisted == []


@pytest.mark.parametrize("file", FILES)
def test_file_pins_all_that_its_packages_need(file):
    assert find_needed(LISTED[file]) == set(read_pins(file))


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
    settings = install.read_pip_settings(
        ":env:.index-url='https://b.example/simple'\n"
        "global.extra-index-url='file:///one\\nfile:///two'\n"
        "global.find-links='/a /b'\n"
        "global.index-url='https://a.example/simple'\n"
        "install.no-index='true'\n"
    )
    refused = ("CONSTRAINT", "PRERELEASE", "INDEX_STRATEGY", "BUILD_CONSTRAINT", "NO_VERIFY_HASHES")
    variables = {f"UV_{name}": "1" for name in refused}
    variables |= {"PATH": "/bin", "UV_FIND_LINKS": "/mine"}
    monkeypatch.setattr("os.environ", variables)
    environment = install.make_uv_environment(settings)
    assert settings["no-index"] == "true"
    assert environment == {
        "PATH": "/bin",
        "UV_DEFAULT_INDEX": "https://b.example/simple",
        "UV_INDEX": "file:///one file:///two",
        "UV_FIND_LINKS": "/mine",
        "UV_NO_SYSTEM_CONFIG": "1",  # no uv.toml may add settings
        "XDG_CONFIG_HOME": os.devnull,
    }


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


# Damaged and foreign files


def write_wheel(folder, name, version, files):
    """Write a wheel and return its line for a requirements file."""
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={urlsafe_b64encode(sha256(text.encode()).digest()).decode().rstrip('=')},"
        for path, text in files.items()
    ]
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return f"{name}=={version} --hash=sha256:{sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture(scope="module")
def venv(tmp_path_factory):
    """A folder with a .venv that has the pinned uv."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder / ".venv"], check=True)
    shutil.copy(Path(sys.executable).parent / "uv", folder / ".venv/bin")
    shutil.copy("requirements-tools.txt", folder)
    (folder / "dvc_verify").mkdir()
    shutil.copy("dvc_verify/packages.py", folder / "dvc_verify")
    return folder


@pytest.fixture
def shop(venv, tmp_path, monkeypatch):
    """A folder of packages, the only place from which `install` takes them into `venv`."""
    monkeypatch.chdir(venv)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


EVIL = "open('evil', 'w')"


def test_changed_packages_are_named(tmp_path):
    """Compiled files do not count."""
    for name in ("edited", "missing", "compiled", "without_record", "Editable.one"):
        line = f"{name}.py,sha256={urlsafe_b64encode(sha256(b'right').digest()).decode()[:-1]},5\n"
        (tmp_path / f"{name}-1.0.dist-info").mkdir()
        record = tmp_path / f"{name}-1.0.dist-info/RECORD"
        record.write_text(
            f"{line}__pycache__/{name}.pyc,sha256=0,\n{record.parent.name}/RECORD,,\n"
        )
        (tmp_path / f"{name}.py").write_text("right")
    (tmp_path / "edited.py").write_text("wrong")
    (tmp_path / "missing.py").unlink()
    (tmp_path / "without_record-1.0.dist-info/RECORD").unlink()
    editable = tmp_path / "Editable.one-1.0.dist-info/direct_url.json"
    editable.write_text('{"url": "file:///one", "dir_info": {"editable": true}}')
    (tmp_path / "sitecustomize.py").touch()
    assert find_changed_packages(tmp_path) == {
        "edited": "edited.py has changed",
        "missing": "missing.py is missing",
        "without-record": "without_record-1.0.dist-info/RECORD is missing or incomplete",
        "editable-one": "installed as editable",
    }
    assert sorted(path.name for path in find_extra_files(tmp_path)) == [
        "sitecustomize.py",
        "without_record.py",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["999.0", read_pins(FILES[1])["setuptools"][2:]])
def test_unpinned_build_tools_are_refused(shop, capfd, version):
    """Also those of the pinned version with other bytes."""
    write_wheel(
        shop, "setuptools", version, {"setuptools/build_meta.py": EVIL, "setuptools.py": EVIL}
    )
    with tarfile.open(shop / "one-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("setup.py", EVIL), ("PKG-INFO", "Name: one\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"one-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    digest = sha256((shop / "one-1.0.tar.gz").read_bytes()).hexdigest()
    Path("one.txt").write_text(f"one==1.0 --hash=sha256:{digest}\n")
    with pytest.raises(SystemExit, match="could not install"):
        install.install(["one.txt"])
    assert "setuptools" in capfd.readouterr().err
    assert not list(shop.parent.rglob("evil"))
    assert not Path("evil").exists()


def edit(site):
    (site / "two/code.py").write_text("changed")


def empty(name):
    return lambda site: next(site.glob(f"two-*/{name}")).write_text("")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [edit, empty("METADATA"), empty("RECORD")])
def test_damaged_package_is_installed_again(shop, capfd, damage):
    Path("two.txt").write_text(write_wheel(shop, "two", "1.0", {"two/code.py": "right"}))
    install.install(["two.txt"])
    (site,) = Path().glob(".venv/lib/*/site-packages")
    damage(site)
    assert list(find_changed_packages(site.resolve())) == ["two"]
    install.install(["two.txt"])
    assert "Installing two again" in capfd.readouterr().out
    assert find_changed_packages(site.resolve()) == {}
    assert (site / "two/code.py").read_text() == "right"
    for path in (shop / "cache").rglob("code.py"):
        assert path.read_text() == "right"  # .venv does not share files with uv's cache


def test_incomplete_bytecode_is_deleted(tmp_path, monkeypatch, capfd):
    """A full disk leaves such files, in the project and in .venv."""
    monkeypatch.chdir(tmp_path)
    torn = []
    for folder in ("stages/core", ".venv/lib/python3/site-packages/numpy"):
        Path(folder).mkdir(parents=True)
        for name in ("right", "torn"):
            Path(folder, f"{name}.py").write_text("x = [1, 2, 3]\n")
            compiled = Path(py_compile.compile(f"{folder}/{name}.py"))
        compiled.write_bytes(compiled.read_bytes()[:-9])
        torn.append(compiled)
    install.delete_incomplete_bytecode()
    assert not any(path.exists() for path in torn)
    assert len(list(Path().rglob("*.pyc"))) == 2
    printed = capfd.readouterr().out
    assert all(f"deleted {path}, " in printed for path in torn)


@pytest.mark.parametrize("redirected", ["> /dev/full", ">&-", "2>&1 | true"])
def test_printing_does_not_stop_the_installer(tmp_path, redirected):
    torn = tmp_path / "__pycache__/torn.pyc"
    torn.parent.mkdir()
    torn.write_bytes(importlib.util.MAGIC_NUMBER + b"torn")
    shell = f'set -o pipefail; "{sys.executable}" "{INSTALL}" --check {redirected}'
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not torn.exists()


def test_pins_are_written_file_by_file(tmp_path, monkeypatch):
    """The first command finds the versions, and the fifth one fails here."""
    commands = []
    monkeypatch.setattr(
        install, "run_uv", lambda *command: commands.append(command) or len(commands) < 5
    )
    for name in ("check_python", "make_venv", "fetch_uv"):
        monkeypatch.setattr(install, name, lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["install.py", "--pin"])
    install.main()
    written = [command[command.index("--output-file") + 1] for command in commands]
    assert written == [".venv/together.txt", *FILES]
    assert all({"--generate-hashes", "7 days"} <= set(command) for command in commands)
    with pytest.raises(SystemExit, match="could not pin"):
        install.main()
    assert len(commands) == 5


def test_merge_conflict_in_pins_is_named(tmp_path):
    path = tmp_path / "pins.txt"
    path.write_text("<<<<<<< HEAD\nsix==1.0\n=======\nsix==2.0\n>>>>>>> other\n")
    with pytest.raises(SystemExit, match=r"conflict in .*pins\.txt.*: make requirements$"):
        install.install([str(path)])


@pytest.mark.parametrize("form", ["variables", "make -e"])
def test_make_reads_arguments_from_its_command_line_only(form):
    """The user's shell may have variables of the same names."""
    makefile = Path("Makefile").read_text()
    names = set(re.findall(r"\$\(([A-Z_]+)\)", makefile))
    names -= {"PATH", "CURDIR", "LOGNAME", "USER", "MAKEFILE_LIST"}
    names -= set(re.findall(r"^([A-Z]+) :=", makefile, re.M))
    assert names > {"FRESH", "PYTHON", "WORKERS", "STRICT"}

    def plan(*arguments, **variables):
        flags = ["-e"] if form == "make -e" else []
        return subprocess.run(
            ["make", "--dry-run", "--old-file", ".venv/runtime", *flags, *arguments],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    targets = ("repro", "compare", "seeds", "draw", "verify", "benchmark")
    foreign = dict.fromkeys(names, "7")
    assert plan(*targets, **foreign) == plan(*targets)
    assert "--local 2" in plan("repro", "WORKERS=2", **foreign)
    assert plan("repro", "FRESH=0") == plan("repro")
    assert plan("repro", "FRESH=1") != plan("repro")


@pytest.mark.slow
@pytest.mark.usefixtures("package_index")
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
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "UV_SYSTEM_PYTHON": "1",
        "VIRTUAL_ENV": other,
    }
    home = {"HOME": "/proc/none", "XDG_CACHE_HOME": ""}
    (tmp_path / "config/uv").mkdir(parents=True)
    (tmp_path / "config/uv/uv.toml").write_text(f"[pip]\ntarget = '{other}'\n")

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
