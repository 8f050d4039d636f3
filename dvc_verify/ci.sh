#!/usr/bin/env bash
# Run the check in CI. action.yml and gitlab.yml start this; it works on any machine.
# COMMAND runs instead of dvc-verify, and then nothing is installed. ARGUMENTS are those of dvc-verify.
# The report goes to GITHUB_STEP_SUMMARY, and with PULL_REQUEST=number to a comment there.
set -uo pipefail
report=reports/verify.md
rm -f "$report" # an older one would mislead
if [ -n "${COMMAND:-}" ]; then
  bash -c "$COMMAND"
else
  python -m pip install --quiet "$(dirname "$0")" || exit 2
  # shellcheck disable=SC2086 # several arguments
  dvc-verify ${ARGUMENTS:-}
fi
code=$?
if [ -e "$report" ]; then
  cat "$report" >> "${GITHUB_STEP_SUMMARY:-/dev/null}"
  if [ -n "${PULL_REQUEST:-}" ]; then
    gh pr comment "$PULL_REQUEST" --body-file "$report" --edit-last --create-if-none || code=2
  fi
fi
exit $code
