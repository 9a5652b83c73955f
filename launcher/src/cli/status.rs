//! Arguments of `vljepa-launch status`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Directory of the run, or file of a programme.
    pub run: PathBuf,
    /// Change of a key with which the programme was started. Can be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Show the state again every SECONDS (default: 2) until the run ends, and return its exit
    /// code. Ctrl-C ends the display only.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    pub watch: Option<WatchInterval>,
    /// Print the result as JSON; with --watch, a line for each change.
    #[arg(long)]
    pub json: bool,
}

/// Time between two updates of a watched run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchInterval(pub Duration);

impl FromStr for WatchInterval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "give seconds from 0.1 to 3600, or the run before --watch".to_owned();
        let seconds: f64 = text.parse().map_err(|_| wrong())?;
        if !(0.1..=3600.0).contains(&seconds) {
            return Err(wrong());
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn the_interval_of_watch_is_optional_and_checked() {
        let watch = |arguments: &[&str]| {
            let line = ["l", "status", "runs/a"].iter().chain(arguments);
            match Cli::try_parse_from(line).map(|cli| cli.command) {
                Ok(Some(Command::Status(status))) => Ok(status.watch.map(|watch| watch.0)),
                other => Err(format!("{other:?}")),
            }
        };
        assert_eq!(watch(&[]), Ok(None));
        assert_eq!(watch(&["--watch"]), Ok(Some(Duration::from_secs(2))));
        assert_eq!(watch(&["--watch", "--json"]), Ok(Some(Duration::from_secs(2))));
        assert_eq!(watch(&["--watch", "0.5"]), Ok(Some(Duration::from_millis(500))));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "often"] {
            assert!(watch(&["--watch", wrong]).is_err(), "{wrong}");
        }
        let misplaced = Cli::try_parse_from(["l", "status", "--watch", "runs/a"]).unwrap_err();
        assert!(misplaced.to_string().contains("the run before --watch"), "{misplaced}");
    }
}
