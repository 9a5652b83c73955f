#!/usr/bin/env bash
# Runs every check and every test, also after one has failed: format, lints, docs, the install scripts on a bare Debian, unit and integration
# tests, and the quickstart once with its gates. Ends with the names of the checks that failed or could not run, and the sum of all tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/install.sh

failed=() not_run=()
check() { # name, command; a command that cannot run on this machine says why and ends with code 77
  local name=$1 code=0
  shift
  "$@" || code=$?
  case $code in
    0) ;;
    77) not_run+=("$name") ;;
    *) failed+=("$name") ;;
  esac
}

# Other people's files, which are not copied into this project: shards, photos and clips to read (tests/tests/all/real_material.rs).
export VLJEPA_MATERIAL=${VLJEPA_MATERIAL:-$(cd .. && pwd)/shared/material}
[ -d "$VLJEPA_MATERIAL" ] || not_run+=("tests of real material (no folder $VLJEPA_MATERIAL; VLJEPA_MATERIAL names another)")

check format cargo fmt --all --check
check build cargo build --release --workspace --features "$features"
check lints cargo clippy --release --workspace --all-targets --features "$features" -- -D warnings
# No feature is on by default, and everything builds without one.
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
# A test binary that dies says no result: it counts as one failed test.
awk '
  /^     Running .*\)$|^   Doc-tests / { failed += open; open = 1 }
  /^test result: / { open = 0; passed += $4; failed += $6; skipped += $8 }
  END { printf "%d passed, %d failed%s\n", passed, failed + open, skipped ? ", " skipped " skipped" : "" }
' "$output"
[ ${#failed[@]} = 0 ]
