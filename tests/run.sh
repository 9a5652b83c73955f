#!/usr/bin/env bash
# Runs all checks and tests: format, build, lints, docs, the install scripts on a bare Debian, unit
# and integration tests, and the quickstart with its gates. A failure does not stop it. At the end
# it prints the checks that failed or could not run, and the number of tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/install.sh

failed=() not_run=()
# check NAME COMMAND...: runs COMMAND and records a failure under NAME. A command that cannot run on
# this machine prints the reason and exits with code 77.
check() {
  local name=$1 code=0
  shift
  "$@" || code=$?
  case $code in
    0) ;;
    77) not_run+=("$name") ;;
    *) failed+=("$name") ;;
  esac
}

# Shards, photos and clips of other people, which are not part of the repository. Read by
# tests/tests/all/real_material.rs.
export VLJEPA_MATERIAL=${VLJEPA_MATERIAL:-$(cd .. && pwd)/shared/material}
[ -d "$VLJEPA_MATERIAL" ] || not_run+=("tests of real material (there is no folder $VLJEPA_MATERIAL; set VLJEPA_MATERIAL to another)")

check format cargo fmt --all --check
check build cargo build --release --workspace --features "$features"
check lints cargo clippy --release --workspace --all-targets --features "$features" -- -D warnings
# No feature is enabled by default, and the workspace must build without any.
check "build without features" cargo check --release --workspace
check docs env RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --features "$features" --quiet
check "bare Debian" tests/bare.sh trixie --quick

output=$(mktemp)
trap 'rm -f "$output"' EXIT
run_tests() { cargo test --release --workspace --features "$features" --no-fail-fast --color never 2>&1 | tee "$output"; }
check tests run_tests
check "rehearsal of the GPU calls" kernels/benches/gpu.py rehearse --features "$features"

printf '\n'
[ ${#failed[@]} = 0 ] || printf 'failed: %s\n' "${failed[@]}"
[ ${#not_run[@]} = 0 ] || printf 'not run: %s\n' "${not_run[@]}"
# A test binary that dies prints no result. It counts as one failed test.
awk '
  /^     Running .*\)$|^   Doc-tests / { failed += open; open = 1 }
  /^test result: / { open = 0; passed += $4; failed += $6; skipped += $8 }
  END { printf "%d passed, %d failed%s\n", passed, failed + open, skipped ? ", " skipped " skipped" : "" }
' "$output"
[ ${#failed[@]} = 0 ]
