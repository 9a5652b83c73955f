//! `vljepa-launch`: trains a recipe, prints its plan, and uses the trained model.

use std::process::ExitCode;

fn main() -> ExitCode {
    vljepa_launcher::run(std::env::args_os())
}
