#!/usr/bin/env bash
# Runs all checks and tests: format, build, lints, docs, licences, the install scripts on a bare
# Debian, unit and integration tests, and the quickstart with its gates. A failure does not stop it.
# At the end it prints the duration of each check, the checks that failed or could not run, and the
# number of tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/install.sh

# Each crate is compiled once here, so what an incremental build saves for the next one is not worth
# its time.
export CARGO_INCREMENTAL=0

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$work"' EXIT

# check NAME COMMAND...: runs COMMAND and notes its exit code and duration under NAME. A command
# that cannot run on this machine prints the reason and exits with code 77.
check() {
  local name=$1 code=0 start=$SECONDS
  shift
  "$@" || code=$?
  echo "$code $((SECONDS - start)) $name" >>"$work/checks"
}

# Shards, photos and clips of other people, which are not part of the repository. Read by
# tests/tests/all/real_material.rs.
export VLJEPA_MATERIAL=${VLJEPA_MATERIAL:-$(cd .. && pwd)/shared/material}
[ -d "$VLJEPA_MATERIAL" ] ||
  echo "77 0 tests of real material (there is no folder $VLJEPA_MATERIAL; set VLJEPA_MATERIAL to another)" >>"$work/checks"

# The dependencies are compiled once for these features, and once more for lints and docs, which
# need no machine code.
static_checks() {
  # `cargo test` holds cargo's lock until its first test runs.
  until grep -qs '^     Running' "$work/tests.with"; do sleep 1; done
  check lints cargo clippy --release --workspace --all-targets --test slurm --features "$features" -- -D warnings
  check docs env RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps --features "$features" --quiet
  check licences "$deny" check licenses bans sources
}
# run_script NAME COMMAND...: runs COMMAND and keeps its output for the count of tests.
run_script() { "${@:2}" 2>&1 | tee "$work/tests.$1"; }
run_tests() { run_script "$1" cargo test --color never "${@:2}"; }
# The build without features is tested on a bare Debian or, where there can be none, on this system.
without_features() {
  check "bare Debian, tests without features" run_script bare tests/bare.sh trixie --quick
  if grep -q '^77 .* bare Debian' "$work/checks"; then
    check "tests without features" run_script without bash tests/without_features.sh
  fi
}
# idle OUTPUT FUNCTION...: runs functions of this script in the background, when no other process
# needs the processor, and writes what they print to the file OUTPUT.
idle() {
  export features deny work
  export -f "${@:2}" check run_script
  chrt --idle 0 bash -o pipefail -c "$(printf '%s;' "${@:2}")" >"$work/$1" 2>&1 &
}

check format cargo fmt --all --check
echo "in the background: bare Debian, tests without features"
idle without without_features
check build cargo build --release --workspace --features "$features"
build_tests() {
  cargo test --release --workspace --features "$features" --no-run &&
    cargo test --release --workspace --features "$features" --no-run --test slurm
}
check "build of tests" build_tests
# Many tests wait for time to pass: the processor is free for other tests and for checks then.
echo "in the background: tests on Slurm, lints, docs, licences"
check "tests on Slurm" run_tests slurm --release --workspace --features "$features" --test slurm >"$work/slurm" 2>&1 &
idle static static_checks
check tests run_tests with --release --workspace --features "$features" --no-fail-fast
check "rehearsal of the GPU calls" kernels/benches/gpu.py rehearse --features "$features"
wait
cat "$work/without" "$work/slurm" "$work/static"

printf '\n'
sort -k 2 -n "$work/checks" | while read -r code seconds name; do printf '%5d s  %s\n' "$seconds" "$name"; done
awk '$1 == 77 { sub(/^77 [0-9]+ /, "not run: "); print }' "$work/checks"
awk '$1 != 77 && $1 != 0 { sub(/^[0-9]+ [0-9]+ /, "failed: "); print }' "$work/checks"
# A test binary that dies prints no result. It counts as one failed test.
awk '
  /^     Running .*\)$|^   Doc-tests / { failed += open; open = 1 }
  /^test result: / { open = 0; passed += $4; failed += $6; skipped += $8 }
  END { printf "%d passed, %d failed%s\n", passed, failed + open, skipped ? ", " skipped " skipped" : "" }
' "$work"/tests.*
! grep -vqE '^(0|77) ' "$work/checks"
