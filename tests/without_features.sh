#!/usr/bin/env bash
# Builds the crates that have features, or code that depends on those of others, without any, and
# runs their unit tests: no feature is enabled by default, and the workspace must work without any.
# There is no optimisation, since these tests are short. Lints see no code of this build, so its
# warnings are errors.
without=(--locked --config profile.dev.debug=false --config 'profile.dev.package."*".opt-level=0' --config "target.'cfg(all())'.rustflags=['-Dwarnings']")
cargo test --color never "${without[@]}" --lib --package vljepa-kernels --package vljepa-data --package vljepa-model --package vljepa-worker
