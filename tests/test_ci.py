"""What CI runs for a pull request: the workflow files, and the scripts in .ci."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.project import AUTHOR
from ruamel.yaml import YAML

WORKFLOWS = {
    path.name: YAML(typ="safe").load(path) for path in Path(".github/workflows").glob("*.yml")
}
JOBS = {
    f"{file}: {name}": job
    for file, content in WORKFLOWS.items()
    for name, job in content["jobs"].items()
}


@pytest.fixture
def run_script(tmp_path, monkeypatch):
    """A function that runs a copy of a script in an empty folder, and returns its exit code.

    `programs` are stand-ins for the programs that the script starts: shell commands, by name.
    """
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def run(script, *arguments, programs=None, **variables):
        for name, text in (programs or {}).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text if text[:2] == "#!" else f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        copy = tmp_path / script
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(script, copy)
        command, environment = [copy, *arguments], os.environ | variables
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False).returncode

    return run


# A stand-in for GitHub's command: keeps comments in a file, and answers as its API does.
GH = r"""#!/usr/bin/env python3
import json, os, sys
from pathlib import Path

store = Path(os.environ["STORE"])
comments = json.loads(store.read_text())
arguments = sys.argv[1:]
assert arguments.pop(0) == "api"
if "--method" not in arguments:
    assert arguments[1].endswith("/issues/7/comments")
    mark = "<!-- make compare -->"
    found = [c for c in comments if c["user"]["type"] == "Bot" and c["body"].startswith(mark)]
    print(*(c["id"] for c in found), sep="\n")
    sys.exit()
method, place = arguments[2], arguments[3]
body = arguments[5].removeprefix("body=")
if method == "POST":
    comments.append({"id": len(comments) + 1, "user": {"type": "Bot"}, "body": body})
else:
    comments[int(place.rpartition("/")[2]) - 1]["body"] = body
store.write_text(json.dumps(comments))
"""


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_job_is_limited_and_pinned(job):
    assert job["timeout-minutes"] <= 60
    for step in job["steps"]:
        action = step.get("uses", "./")
        assert action.startswith("./") or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)
        for script in re.findall(r"\.ci/\w+", step.get("run", "")):
            assert os.access(script, os.X_OK)


def test_only_comment_and_record_need_a_token_that_may_write():
    assert all(content["permissions"] == {"contents": "read"} for content in WORKFLOWS.values())
    writing = {name: job["permissions"] for name, job in JOBS.items() if "permissions" in job}
    assert writing == {
        "compare.yml: compare": {"contents": "read", "pull-requests": "write"},
        "record.yml: record": {"contents": "write"},
    }
    steps = [step for step in JOBS["compare.yml: compare"]["steps"] if "GH_TOKEN" in str(step)]
    assert [step["run"] for step in steps] == [".ci/comment reports/compare.md"]
    assert "head.repo.full_name == github.repository" in steps[0]["if"]  # not for forks


def test_x86_and_arm_run_the_tests_and_must_give_identical_results():
    tests, verify = (JOBS[f"ci.yml: {name}"]["strategy"]["matrix"] for name in ("test", "verify"))
    runners = {"ubuntu-24.04", "ubuntu-24.04-arm"}
    assert {*tests["runner"], *(entry["runner"] for entry in tests["include"])} == runners
    assert {*verify["runner"]} == runners
    assert "make verify STRICT=1" in Path(".ci/run").read_text()
    command = ["make", "--dry-run", "verify", "STRICT=1"]
    assert "--strict" in subprocess.run(command, capture_output=True, text=True).stdout


def test_later_reports_update_the_comment(run_script, tmp_path):
    others = [{"id": 1, "user": {"type": "User"}, "body": "<!-- make compare --> quoted"}]
    store, report = tmp_path / "comments.json", tmp_path / "compare.md"
    store.write_text(json.dumps(others))
    place = {"STORE": str(store), "PLACE": "repos/o/n/issues", "NUMBER": "7"}
    for text in ('## worse\n\n`a` $b "c"\n', "## better\n", "a" + "가" * 30_000):
        report.write_text(text)
        assert run_script(".ci/comment", report, programs={"gh": GH}, **place) == 0
        kept, ours = json.loads(store.read_text())
        assert kept == others[0]
        assert ours["body"].startswith(f"<!-- make compare -->\n{text.strip()[:1000]}")
        assert len(ours["body"].encode()) < 65_536


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("accepted", ["true", "false"])
def test_accepted_results_are_no_failure(run_script, tmp_path, code, accepted):
    """The label's name is in the report."""
    compare = f'mkdir -p reports; echo "$@" > reports/compare.md; exit {code}'
    programs = {".venv/bin/python": compare, "make": "", "dvc": "exit 1"}
    ended = run_script(".ci/compare", "origin/main", programs=programs, ACCEPTED=accepted)
    assert ended == (0 if accepted == "true" else code)
    report = (tmp_path / "reports/compare.md").read_text()
    assert report.startswith("-m tools.compare origin/main HEAD\n")
    assert ("accept-results" in report) == (code > 0 and accepted == "true")


def test_failed_installation_is_reported(run_script, tmp_path):
    """Even with the label, and in place of the report of an earlier run."""
    report = tmp_path / "reports/compare.md"
    report.parent.mkdir()
    report.write_text("better")
    programs = {"make": "echo no network >&2; exit 2"}
    assert run_script(".ci/compare", "origin/main", programs=programs, ACCEPTED="true") == 2
    assert report.read_text() == "## The results were not compared\n\n    no network\n"


@pytest.mark.parametrize(
    ("repository", "changes", "code", "commits"),
    [("o/n", True, 0, 2), ("o/n", False, 0, 1), ("stranger/n", True, 1, 1)],
)
def test_results_are_recorded_unless_of_a_fork(
    run_script, tmp_path, repository, changes, code, commits
):
    def git(*arguments):
        command = ["git", "-C", tmp_path, *AUTHOR, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    for name in ("dvc.lock", "fingerprint.json", "docs/model-card.md", "data/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old\n")
    git("init", "-q")
    git("add", "--all")
    git("commit", "-q", "-m", "start")
    programs = {"make": "echo $@ > dvc.lock" if changes else ""}
    assert run_script(".ci/record", programs=programs, FROM=repository, INTO="o/n") == code
    assert len(git("log", "--format=%h").split()) == commits
    assert git("show", "HEAD:dvc.lock") == ("repro model-card\n" if commits == 2 else "old\n")


@pytest.mark.parametrize("code", [0, 1])
def test_action_keeps_the_report_and_the_exit_code(run_script, tmp_path, code):
    """What dvc_verify/action.yml runs."""
    command = f"mkdir reports; echo text > reports/verify.md; exit {code}"
    summary, programs = tmp_path / "summary", {"gh": 'echo "$@" > called'}
    ended = run_script(
        "dvc_verify/ci.sh",
        programs=programs,
        COMMAND=command,
        GITHUB_STEP_SUMMARY=str(summary),
        PULL_REQUEST="7",
    )
    assert (ended, summary.read_text()) == (code, "text\n")
    assert (tmp_path / "called").read_text().startswith("pr comment 7 --body-file")


@pytest.mark.xdist_group("kept")
def test_tests_of_a_group_stay_together(request):
    """Otherwise every process prepares what the group shares."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("needs several processes")
    assert request.node.nodeid.endswith("@kept")


def test_action_passes_every_input_in_a_variable():
    """An input in a script could run commands."""
    action = YAML(typ="safe").load(Path("dvc_verify/action.yml"))
    (step, _) = action["runs"]["steps"]
    assert "${{" not in step["run"]
    used = " ".join([*step["env"].values(), step["working-directory"]])
    assert all(f"inputs.{name}" in used for name in action["inputs"] if name != "name")
