//! NVIDIA's libraries, as the worker loads them.

use std::time::Duration;

use vljepa_recipes::protocol::{LibraryName, LibraryReport, LoadedLibrary};
use vljepa_recipes::schema::Recipe;

use super::finding::{Fact, Finding};
use crate::process;
use crate::programs::Programs;

/// How long loading the libraries may take. From a busy network disk their 800 MB take a while.
const LIMIT: Duration = Duration::from_secs(30);

/// Lets the worker load the libraries, and judges them against the recipe.
pub(super) async fn look(programs: &Programs, recipe: Option<&Recipe>) -> Vec<Finding> {
    let asked = process::ask_within(LIMIT, &programs.worker, &["libraries".as_ref()]).await;
    let reports = asked.map_err(String::from).and_then(|said| {
        serde_json::from_slice::<Vec<LibraryReport>>(&said).map_err(|error| error.to_string())
    });
    match reports {
        Ok(reports) => judge(&reports, recipe),
        Err(why) => {
            let help = "run it by hand: vljepa-worker libraries";
            vec![Finding::fail(Fact::Driver, why, help)]
        }
    }
}

fn judge(reports: &[LibraryReport], recipe: Option<&Recipe>) -> Vec<Finding> {
    let driver = reports.iter().find(|report| report.name == LibraryName::Driver);
    let newest = driver.and_then(|report| major(&report.found.as_ref().ok()?.version));
    let several = recipe.is_some_and(|recipe| recipe.cluster.world_size() > 1);
    let judge = |LibraryReport { name, found }: &LibraryReport| match found {
        Ok(loaded) => judge_version(*name, loaded, newest),
        Err(why) => missing(fact(*name), why, *name != LibraryName::Nccl || several, recipe),
    };
    reports.iter().map(judge).collect()
}

/// A library that does not load. Its message ends with what to do, after a semicolon.
fn missing(fact: Fact, why: &str, is_needed: bool, recipe: Option<&Recipe>) -> Finding {
    // The paths that were tried contain no semicolon, and the advice may.
    let (found, help) = why.split_once("; ").unwrap_or((why, "install NVIDIA's driver"));
    match (is_needed, recipe) {
        (true, Some(_)) => Finding::fail(fact, found, help),
        (false, Some(_)) => Finding::pass(fact, format!("not needed by one rank: {found}")),
        (_, None) => Finding::warn(fact, found, help),
    }
}

/// A loaded library; `newest` is the major version of CUDA that the driver supports.
fn judge_version(name: LibraryName, loaded: &LoadedLibrary, newest: Option<u32>) -> Finding {
    let LoadedLibrary { version, path } = loaded;
    let fact = fact(name);
    let found = match path {
        None => format!("supports CUDA {version} and older"),
        Some(path) => format!("{version} from {}", path.display()),
    };
    // The version of NCCL is not that of CUDA.
    let of_cuda = match name {
        LibraryName::Nvrtc | LibraryName::CublasLt => major(version),
        LibraryName::Driver | LibraryName::Nccl => None,
    };
    if let (Some(own), Some(newest)) = (of_cuda, newest)
        && own > newest
    {
        let found = format!("{found}, but the driver supports CUDA {newest} at most");
        let variable = match name {
            LibraryName::Nvrtc => "VLJEPA_NVRTC",
            _ => "VLJEPA_CUBLASLT",
        };
        let help = format!("update the driver, or name a library of CUDA {newest} in {variable}");
        return Finding::fail(fact, found, help);
    }
    Finding::pass(fact, found)
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

fn fact(name: LibraryName) -> Fact {
    match name {
        LibraryName::Driver => Fact::Driver,
        LibraryName::Nvrtc => Fact::Nvrtc,
        LibraryName::CublasLt => Fact::CublasLt,
        LibraryName::Nccl => Fact::Nccl,
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use vljepa_recipes::Recipe;
    use vljepa_recipes::protocol::{LibraryName, LibraryReport, LoadedLibrary};

    use super::judge;
    use crate::doctor::finding::{Fact, State};

    fn recipe(ranks: usize) -> Recipe {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let ranks = format!("cluster.ranks_per_node={ranks}");
        let sets = ["device=cuda".to_owned(), "precision=bf16".to_owned(), ranks];
        vljepa_recipes::load(&recipe, &sets).unwrap().recipe
    }

    fn loaded(name: LibraryName, version: &str) -> LibraryReport {
        let path = (name != LibraryName::Driver).then(|| PathBuf::from("/lib/x.so"));
        LibraryReport { name, found: Ok(LoadedLibrary { version: version.to_owned(), path }) }
    }

    #[test]
    fn a_missing_library_fails_if_the_recipe_needs_it_and_says_how_to_get_it() {
        let why = "NCCL was not found (tried a, b); several GPUs need NCCL: pip install nccl";
        let report = LibraryReport { name: LibraryName::Nccl, found: Err(why.to_owned()) };
        let judged =
            |recipe: Option<&Recipe>| judge(std::slice::from_ref(&report), recipe).remove(0);
        let failed = judged(Some(&recipe(2)));
        assert_eq!((failed.fact, failed.state), (Fact::Nccl, State::Fail));
        assert!(failed.found.contains("tried a, b"), "{failed:?}");
        assert!(failed.advice.unwrap().contains("pip install"));
        assert_eq!(judged(Some(&recipe(1))).state, State::Pass);
        assert_eq!(judged(None).state, State::Warn);
    }

    #[test]
    fn a_library_that_is_newer_than_the_driver_fails() {
        let states = |nvrtc: &str| {
            let reports = [
                loaded(LibraryName::Driver, "12.4"),
                loaded(LibraryName::Nvrtc, nvrtc),
                loaded(LibraryName::Nccl, "2.27.7"),
            ];
            judge(&reports, None).iter().map(|finding| finding.state).collect::<Vec<_>>()
        };
        assert_eq!(states("12.9"), [State::Pass; 3], "minor versions are compatible");
        assert_eq!(states("13.0"), [State::Pass, State::Fail, State::Pass]);
    }
}
