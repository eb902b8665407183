//! Rules that no compiler checks, over the tracked files and the dependency graph.
//!
//! Each rule is a function from a [`Tree`] (or from cargo's own answer) to a list of
//! [`Problem`]s, with a test that shows it failing. Nothing here edits a file.

mod dependencies;
mod documents;
mod fixtures;
mod kernels;
mod lexer;
mod sources;
mod tree;

pub use documents::readme_commands;
pub use tree::{File, Tree};

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

/// One broken rule: where, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path from the workspace root, or the name of a package.
    pub place: String,
    /// Line in that file, counted from 1, where the rule has one.
    pub line: Option<usize>,
    /// What was expected and what was found.
    pub message: String,
}

impl Problem {
    fn at(place: &str, line: usize, message: impl Into<String>) -> Self {
        Self { place: place.into(), line: Some(line), message: message.into() }
    }

    fn of(place: &str, message: impl Into<String>) -> Self {
        Self { place: place.into(), line: None, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.place, self.message),
            None => write!(f, "{}: {}", self.place, self.message),
        }
    }
}

/// Runs every rule on the checkout at `root`.
///
/// # Errors
/// When the tree cannot be listed or cargo cannot answer.
pub fn check(root: &Path) -> Result<Vec<Problem>, String> {
    let tree = Tree::tracked(root)?;
    let mut problems = check_files(&tree);
    problems.extend(kernels::built_files(root, &tree));
    problems.extend(dependencies::direction(&dependencies::metadata(root)?));
    problems.extend(dependencies::tree_size(&dependencies::library_tree(root)?));
    Ok(problems)
}

/// The rules that need nothing but the files.
fn check_files(tree: &Tree) -> Vec<Problem> {
    let rules: [fn(&Tree) -> Vec<Problem>; 12] = [
        sources::module_docs,
        sources::line_length,
        sources::banned_names,
        sources::banned_macros,
        sources::unsafe_places,
        sources::unsafe_lints,
        sources::runtime_is_pure,
        documents::changelog_entry,
        documents::machine_paths,
        documents::private_hosts,
        fixtures::dead_files,
        kernels::shaders,
    ];
    rules.iter().flat_map(|rule| rule(tree)).collect()
}

/// Prints the problems and says by the exit code whether there were any.
#[must_use]
pub fn run(root: &Path) -> ExitCode {
    match check(root) {
        Ok(problems) if problems.is_empty() => {
            println!("tidy: no problem found");
            ExitCode::SUCCESS
        }
        Ok(problems) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            eprintln!("tidy: {} problems", problems.len());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("tidy: {error}");
            ExitCode::FAILURE
        }
    }
}
