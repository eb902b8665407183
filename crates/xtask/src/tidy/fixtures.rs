//! Rules about data files: each one is used by something.
//!
//! "Used" means named: by its file name, or by a folder on its way (a checkpoint folder is read
//! as a whole).

use super::{File, Problem, Tree};

/// Folders whose files must each be named by a test, a build or a script.
const DATA_FOLDERS: [&str; 3] =
    ["tests/fixtures/", "models/", "crates/neural-forecast-cli/examples/"];

/// Files that nothing reads: left over from a test or a model that is gone.
pub(super) fn dead_files(tree: &Tree) -> Vec<Problem> {
    let readers: Vec<(&str, &str)> = tree
        .texts()
        .filter(|(file, _)| reads_data(&file.path))
        .map(|(file, text)| (file.path.as_str(), text))
        .collect();
    tree.files
        .iter()
        .filter_map(|file| Some((file, data_path(&file.path)?)))
        .filter(|(file, _)| !explains_itself(file))
        .filter(|(file, inside)| !is_named(file, inside, &readers))
        .map(|(file, _)| Problem::of(&file.path, "no test, build or script names this file"))
        .collect()
}

fn data_path(path: &str) -> Option<&str> {
    DATA_FOLDERS.iter().find_map(|folder| path.strip_prefix(folder))
}

/// Texts whose mention of a file counts: code and scripts, not prose.
fn reads_data(path: &str) -> bool {
    path == ".ci/run" || [".rs", ".py", ".sh", "Cargo.toml"].iter().any(|end| path.ends_with(end))
}

/// Model cards, notes and the scripts that make the data.
fn explains_itself(file: &File) -> bool {
    [".md", ".py", ".sh", ".txt"].iter().any(|end| file.name().ends_with(end))
}

fn is_named(file: &File, inside: &str, readers: &[(&str, &str)]) -> bool {
    // `modules/x.safetensors`: the folder of all modules says nothing about this one.
    let names = inside.split('/').filter(|part| *part != "modules" && *part != "checkpoint");
    names.into_iter().any(|name| {
        let stem = name.split('.').next().unwrap_or(name);
        let wanted = if name == file.name() { [name, stem] } else { [name, name] };
        readers.iter().any(|(path, text)| {
            *path != file.path && wanted.iter().any(|word| contains_word(text, word))
        })
    })
}

/// `word` with no letter, digit or `_` directly before or after it.
fn contains_word(text: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        !joins(text[..at].chars().next_back()) && !joins(text[at + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nothing_names_is_found() {
        let tree = Tree::of(&[
            ("tests/fixtures/nf_gru/checkpoint/GRU_0.safetensors", ""),
            ("tests/fixtures/nf_old/checkpoint/GRU_0.safetensors", ""),
            ("tests/fixtures/modules/lstm.safetensors", ""),
            ("tests/fixtures/modules/rnn.safetensors", ""),
            ("tests/fixtures/README.md", "nf_old rnn.safetensors"),
            ("models/a/weights.bin", ""),
            ("crates/x/src/lib.rs", "check(\"nf_gru\"); module(\"lstm\"); include!(\"models/b\")"),
        ]);
        let found = dead_files(&tree);
        let places: Vec<&str> = found.iter().map(|p| p.place.as_str()).collect();
        assert_eq!(
            places,
            [
                "tests/fixtures/nf_old/checkpoint/GRU_0.safetensors",
                "tests/fixtures/modules/rnn.safetensors",
                "models/a/weights.bin",
            ]
        );
    }

    #[test]
    fn a_longer_name_does_not_count() {
        assert!(contains_word("read(\"nf_gru\")", "nf_gru"));
        assert!(!contains_word("read(\"nf_gru_exog\")", "nf_gru"));
    }
}
