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


def test_results_must_be_identical_on_x86_and_equivalent_on_arm():
    include = JOBS["ci.yml: verify"]["strategy"]["matrix"]["include"]
    assert {entry["runner"]: entry["strict"] for entry in include} == {
        "ubuntu-24.04": "1",
        "ubuntu-24.04-arm": "",
    }
    for strict, expected in (("1", "--strict"), ("", "")):
        planned = subprocess.run(
            ["make", "--dry-run", "--no-print-directory", "verify", f"STRICT={strict}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert ("--strict" in planned) == bool(expected)


def test_later_reports_update_the_comment(tmp_path):
    (tmp_path / "gh").write_text(GH)
    (tmp_path / "gh").chmod(0o755)
    others = [{"id": 1, "user": {"type": "User"}, "body": "<!-- make compare --> quoted"}]
    store, report = tmp_path / "comments.json", tmp_path / "compare.md"
    store.write_text(json.dumps(others))
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "STORE": str(store),
        "PLACE": "repos/o/n/issues",
        "NUMBER": "7",
    }
    for text in ('## worse\n\n`a` $b "c"\n', "## better\n", "a" + "가" * 30_000):
        report.write_text(text)
        subprocess.run([".ci/comment", report], env=os.environ | environment, check=True)
        kept, ours = json.loads(store.read_text())
        assert kept == others[0]
        assert ours["body"].startswith(f"<!-- make compare -->\n{text.strip()[:1000]}")
        assert len(ours["body"].encode()) < 65_536


COMPARE = """#!/bin/sh
mkdir -p reports
echo "$@" > reports/compare.md
exit {code}
"""


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("accepted", ["true", "false"])
def test_accepted_results_are_no_failure(tmp_path, code, accepted):
    """The label's name is in the report."""
    programs = {".venv/bin/python": COMPARE.format(code=code), "make": "", "dvc": "exit 1"}
    for name, text in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    script = shutil.copy(".ci/compare", tmp_path / ".ci")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "ACCEPTED": accepted}
    ended = subprocess.run([script, "origin/main"], env=os.environ | environment, check=False)
    assert ended.returncode == (0 if accepted == "true" else code)
    report = (tmp_path / "reports/compare.md").read_text()
    assert report.startswith("-m tools.compare origin/main HEAD\n")
    assert ("accept-results" in report) == (code > 0 and accepted == "true")


@pytest.mark.parametrize(
    ("repository", "changes", "code", "commits"),
    [("o/n", True, 0, 2), ("o/n", False, 0, 1), ("stranger/n", True, 1, 1)],
)
def test_results_are_recorded_unless_of_a_fork(tmp_path, repository, changes, code, commits):
    def git(*arguments):
        command = ["git", "-C", tmp_path, *AUTHOR, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    for path in (
        "dvc.lock",
        "fingerprint.json",
        "docs/model-card.md",
        "data/metrics.json",
        ".ci/x",
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("old\n")
    script = shutil.copy(".ci/record", tmp_path / ".ci")
    git("init", "-q")
    git("add", "--all")
    git("commit", "-q", "-m", "start")
    (tmp_path / "make").write_text("#!/bin/sh\n" + "echo $@ > dvc.lock\n" * changes)
    (tmp_path / "make").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "FROM": repository, "INTO": "o/n"}
    ended = subprocess.run([script], env=environment, check=False)
    assert ended.returncode == code
    assert len(git("log", "--format=%h").split()) == commits
    assert git("show", "HEAD:dvc.lock") == ("repro model-card\n" if commits == 2 else "old\n")


def test_failed_installation_is_reported(tmp_path):
    """Even with the label, and in place of the report of an earlier run."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "reports").mkdir()
    report = tmp_path / "reports/compare.md"
    report.write_text("better")
    script = shutil.copy(".ci/compare", tmp_path / ".ci")
    (tmp_path / "make").write_text("#!/bin/sh\necho no network >&2\nexit 2\n")
    (tmp_path / "make").chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "ACCEPTED": "true"}
    ended = subprocess.run([script, "origin/main"], env=os.environ | environment, check=False)
    assert ended.returncode == 2
    assert report.read_text() == "## The results were not compared\n\n    no network\n"


@pytest.mark.xdist_group("kept")
def test_tests_of_a_group_stay_together(request):
    """Otherwise every process prepares what the group shares."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("needs several processes")
    assert request.node.nodeid.endswith("@kept")


@pytest.mark.parametrize("code", [0, 1])
def test_action_keeps_the_report_and_the_exit_code(tmp_path, code):
    """What dvc_verify/action.yml runs."""
    summary, command = (
        tmp_path / "summary",
        f"mkdir reports; echo text > reports/verify.md; exit {code}",
    )
    (tmp_path / "gh").write_text('#!/bin/sh\necho "$@" > called\n')
    (tmp_path / "gh").chmod(0o755)
    variables = {
        "COMMAND": command,
        "GITHUB_STEP_SUMMARY": str(summary),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PULL_REQUEST": "7",
    }
    script = Path("dvc_verify/ci.sh").resolve()
    done = subprocess.run([script], cwd=tmp_path, env=os.environ | variables, check=False)
    assert (done.returncode, summary.read_text()) == (code, "text\n")
    assert (tmp_path / "called").read_text().startswith("pr comment 7 --body-file")


def test_action_passes_every_input_in_a_variable():
    """An input in a script could run commands."""
    action = YAML(typ="safe").load(Path("dvc_verify/action.yml"))
    (step, _) = action["runs"]["steps"]
    assert "${{" not in step["run"]
    used = " ".join([*step["env"].values(), step["working-directory"]])
    assert all(f"inputs.{name}" in used for name in action["inputs"] if name != "name")
