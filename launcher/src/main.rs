//! `vljepa-launch`: trains a recipe, shows what it would do, and puts what was trained to use.

use std::process::ExitCode;

fn main() -> ExitCode {
    vljepa_launcher::run(std::env::args_os())
}
