//! The files a rule looks at: those git tracks, or all of them where there is no git.
//!
//! Holds texts only; a file that is not UTF-8 is listed without its text.

use std::path::Path;
use std::process::Command;

/// One file of the checkout.
#[derive(Clone, Debug)]
pub struct File {
    /// Path from the workspace root, with `/` between its parts.
    pub path: String,
    /// The text, or `None` where the file is binary.
    pub text: Option<String>,
}

impl File {
    /// The last part of the path.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// A checkout: its files in path order.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// The files in path order.
    pub files: Vec<File>,
}

impl Tree {
    /// Reads the tracked files under `root`.
    ///
    /// # Errors
    /// When neither git nor the folder itself can be listed.
    pub fn tracked(root: &Path) -> Result<Self, String> {
        let mut paths = match git_files(root) {
            Some(paths) => paths,
            None => walk(root)?,
        };
        paths.sort();
        let read = |path: String| {
            // Deleted but not yet committed: nothing to look at.
            let bytes = std::fs::read(root.join(&path)).ok()?;
            Some(File { path, text: String::from_utf8(bytes).ok() })
        };
        Ok(Self { files: paths.into_iter().filter_map(read).collect() })
    }

    /// A tree made of `(path, text)` pairs, for the tests of the rules.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let file = |&(path, text): &(&str, &str)| File {
            path: path.to_string(),
            text: Some(text.to_string()),
        };
        Self { files: files.iter().map(file).collect() }
    }

    /// The files whose name ends in `.rs`, with their text.
    pub fn rust(&self) -> impl Iterator<Item = (&File, &str)> {
        self.texts().filter(|(file, _)| file.path.ends_with(".rs"))
    }

    /// The files that are text.
    pub fn texts(&self) -> impl Iterator<Item = (&File, &str)> {
        self.files.iter().filter_map(|file| Some((file, file.text.as_deref()?)))
    }

    /// The text of the file at `path`.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }
}

fn git_files(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git").args(["ls-files", "-z"]).current_dir(root).output().ok()?;
    let listed = String::from_utf8(output.stdout).ok()?;
    let paths: Vec<String> = listed.split('\0').filter(|p| !p.is_empty()).map(Into::into).collect();
    (output.status.success() && !paths.is_empty()).then_some(paths)
}

/// Every file below `root`, for a source archive: build outputs and hidden folders left out.
fn walk(root: &Path) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries =
            std::fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && name != "target" && name != ".git" {
                folders.push(path);
            } else if !is_folder && let Ok(inside) = path.strip_prefix(root) {
                found.push(inside.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn walking_and_git_agree_on_this_package() {
        let root = crate::workspace_root();
        let walked = walk(&root.join("crates/xtask")).unwrap();
        assert!(walked.iter().any(|path| path == "src/tidy/tree.rs"), "{walked:?}");
        if let Some(tracked) = git_files(&root) {
            assert!(tracked.iter().any(|path| path == "Cargo.toml"));
        }
    }
}
