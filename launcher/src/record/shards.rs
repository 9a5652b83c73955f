//! Shards of a recipe as files on this machine. The launcher only counts and fingerprints shards;
//! the worker reads them.

use std::path::{Path, PathBuf};

use vljepa_recipes::is_remote;

/// Largest number of files that a brace pattern may expand to.
const MAX_SHARDS: usize = 4_000_000;

/// Files that `shards` names, in order: all `*.tar` files of a folder, the lines of a `.txt` file,
/// one tar file, or the expansion of braces (`{000..127}`, `{a,b}`). URLs stay as they are; a
/// folder's URL is one name. Empty if a folder cannot be read or a pattern is wrong; the checks of
/// the recipe report that.
pub(crate) fn files(shards: &str) -> Vec<PathBuf> {
    let path = Path::new(shards);
    if path.is_dir() {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "tar"));
        files.sort();
        return files;
    }
    if path.is_file() {
        let is_list = path.extension().is_some_and(|extension| extension == "txt");
        return if is_list { listed(path) } else { vec![path.to_owned()] };
    }
    expand(shards).unwrap_or_default().into_iter().map(PathBuf::from).collect()
}

/// Shards in the file `list`, one per line. Relative paths start at its folder.
fn listed(list: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(list).unwrap_or_default();
    let lines = text.lines().map(|line| line.trim_start_matches('\u{feff}').trim());
    let folder = list.parent().unwrap_or(Path::new(""));
    let named = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    named
        .map(|line| if is_remote(line) { PathBuf::from(line) } else { folder.join(line) })
        .collect()
}

fn expand(text: &str) -> Option<Vec<String>> {
    let Some((before, rest)) = text.split_once('{') else {
        return (!text.contains('}')).then(|| vec![text.to_owned()]);
    };
    let (inside, after) = rest.split_once('}')?;
    let endings = expand(after)?;
    let choices = choices(inside)?;
    if choices.len().checked_mul(endings.len())? > MAX_SHARDS {
        return None;
    }
    let with_endings = |choice: &String| {
        endings.iter().map(|end| format!("{before}{choice}{end}")).collect::<Vec<_>>()
    };
    Some(choices.iter().flat_map(with_endings).collect())
}

fn choices(inside: &str) -> Option<Vec<String>> {
    let Some((first, last)) = inside.split_once("..") else {
        return Some(inside.split(',').map(str::to_owned).collect());
    };
    let (from, to): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let width = first.len();
    let count = usize::try_from(to.checked_sub(from)?).ok()?;
    (count < MAX_SHARDS).then(|| (from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::{expand, files};

    #[test]
    fn a_folder_names_its_tars_in_order() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.tar", "a.tar", "a.tar.index", "readme.txt"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        let found = files(folder.path().to_str().unwrap());
        let names: Vec<_> =
            found.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.tar", "b.tar"]);
    }

    #[test]
    fn a_list_names_its_lines() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("train.txt");
        std::fs::write(&list, "# shards\n\na.tar\n/b.tar\ns3://bucket/c.tar\n").unwrap();
        let named = [folder.path().join("a.tar"), "/b.tar".into(), "s3://bucket/c.tar".into()];
        assert_eq!(files(list.to_str().unwrap()), named);
    }

    #[test]
    fn braces_keep_their_zeros_and_their_order_and_broken_ones_name_nothing() {
        assert_eq!(expand("x/{a,b}-{08..10}.tar").unwrap().len(), 6);
        assert_eq!(expand("{08..10}.tar").unwrap(), ["08.tar", "09.tar", "10.tar"]);
        assert_eq!(expand("plain.tar").unwrap(), ["plain.tar"]);
        for broken in ["a{1..", "a{3..1}", "a}", "a{x..y}", "{0..99999999}{0..99}"] {
            assert!(expand(broken).is_none(), "{broken}");
        }
    }
}
