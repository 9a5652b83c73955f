//! Runs whose directories a run reads.

use std::path::Path;

use super::{Init, Recipe, Row, Table};

impl Recipe {
    /// Directories of other runs that a run of this recipe reads: that of `init.run`, and those of
    /// the rows of a table.
    ///
    /// Exported folders and files of weights are not among them, because no run makes them. A new
    /// key that names a run must be added here. The patterns list all keys, so a new key of the
    /// recipe, a table or a row does not compile before it is listed.
    #[must_use]
    pub fn needs(&self) -> Vec<&Path> {
        let Self {
            init,
            table,
            name: _,
            seed: _,
            runs: _,
            device: _,
            precision: _,
            deterministic: _,
            model: _,
            loss: _,
            data: _,
            stages: _,
            optimizer: _,
            evaluation: _,
            cluster: _,
            checkpoints: _,
            logging: _,
            readings: _,
        } = self;
        let initial = match init {
            Some(Init::Run(run)) => Some(run.as_path()),
            Some(Init::Export(_) | Init::Weights(_)) | None => None,
        };
        let rows = table.iter().flat_map(|table| {
            let Table { rows, of: _, columns: _, skip_absent_sets: _ } = table;
            rows.values()
        });
        let rows = rows.filter_map(|row| {
            let Row { run, step: _, export: _, model: _, paper: _, note: _ } = row;
            run.as_deref()
        });
        let mut needs: Vec<&Path> = Vec::new();
        for run in initial.into_iter().chain(rows) {
            if !needs.contains(&run) {
                needs.push(run);
            }
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::Value;

    use crate::load::load;

    fn recipes(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !["sets", "rates", "src"].iter().any(|name| path.ends_with(name)) {
                recipes(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
    }

    /// Dotted keys called `run` or `runs` below the first level.
    fn keys_of_runs(key: &str, value: &Value, found: &mut Vec<String>) {
        let Value::Object(entries) = value else { return };
        for (name, value) in entries {
            let below = format!("{key}.{name}");
            if !key.is_empty() && name.starts_with("run") {
                found.push(below.clone());
            }
            keys_of_runs(&below, value, found);
        }
    }

    #[test]
    fn every_key_that_names_a_run_is_a_need() {
        let mut files = Vec::new();
        recipes(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files);
        let (mut inits, mut rows) = (0, 0);
        for file in files {
            let Ok(loaded) = load(&file, &[]) else { continue };
            let mut keys = Vec::new();
            keys_of_runs("", &serde_json::to_value(&loaded.recipe).unwrap(), &mut keys);
            for key in keys {
                let segments: Vec<&str> = key.split('.').skip(1).collect();
                match segments[..] {
                    ["init", "run"] => inits += 1,
                    ["table", "rows", _, "run"] => rows += 1,
                    _ => panic!("{}: {key} is not among the needs", file.display()),
                }
            }
        }
        assert!(inits >= 3 && rows >= 30, "{inits} {rows}");
    }

    #[test]
    fn a_recipe_needs_the_runs_that_it_names_each_once() {
        let recipe = |name: &str, sets: &[&str]| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            load(&path, &sets).unwrap().recipe
        };
        let base = recipe("finetune.yaml", &[]);
        assert_eq!(base.needs(), [Path::new("runs/pretrain")]);
        let export = recipe("finetune.yaml", &["init.run=null", "init.export=weights/base"]);
        assert!(export.needs().is_empty(), "{:?}", export.needs());
        let table = recipe("evaluate/table1.yaml", &["table.rows.more={run: runs/pretrain}"]);
        assert_eq!(table.needs(), [Path::new("runs/pretrain"), Path::new("runs/finetune")]);
    }
}
