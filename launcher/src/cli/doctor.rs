//! Arguments of `vljepa-launch doctor`.

use std::path::PathBuf;

use clap::Args;

use super::RecipeOptions;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Recipe that is to run here. Without it only the machine is looked at.
    pub recipe: Option<PathBuf>,
    #[command(flatten)]
    pub options: RecipeOptions,
    /// Also measure how fast the devices compute the recipe's networks, which takes about two
    /// minutes, and compare with the rates of a plan.
    #[arg(long, requires = "recipe")]
    pub bench: bool,
    /// Rates to compare with, a YAML file like recipes/rates/h200.yaml. Default: those of H200. A
    /// recipe with `device: host` has no default.
    #[arg(long, value_name = "FILE", requires = "bench")]
    pub rates: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
    /// Answer the doctor of a job, which starts this command on each node.
    #[arg(long, hide = true, conflicts_with_all = ["recipe", "json"])]
    pub node: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    #[test]
    fn a_recipe_is_optional() {
        let parsed = |more: &[&str]| {
            let cli = Cli::try_parse_from(["l", "doctor"].iter().chain(more)).ok()?;
            match cli.command {
                Some(Command::Doctor(doctor)) => Some((doctor.recipe.is_some(), doctor.node)),
                _ => None,
            }
        };
        assert_eq!(parsed(&[]), Some((false, false)));
        assert_eq!(parsed(&["a.yaml", "--set", "device=cuda", "--json"]), Some((true, false)));
        assert_eq!(parsed(&["--node"]), Some((false, true)));
        assert_eq!(parsed(&["--node", "a.yaml"]), None);
        assert_eq!(parsed(&["a.yaml", "b.yaml"]), None);
    }
}
