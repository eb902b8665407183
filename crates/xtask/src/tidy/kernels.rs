//! Rules about GPU kernels: CUDA's are embedded as built from the source beside them, WebGPU's as
//! their text.
//!
//! Needs no compiler; that the bytes are what the pinned compilers give is `cargo xtask ptx
//! --check`'s business, that shaders are valid is the WebGPU backend's tests'.

use super::{Problem, Tree};
use crate::ptx::source_line;
use std::path::Path;

/// What embeds shaders.
const SHADER_LIST: &str = "crates/neural-forecast-wgpu/src/kernel.rs";

/// Line length of kernel sources, as of Rust sources.
const COLUMNS_MAX: usize = 100;

/// Every source opens by saying what it is, has its two built files, and they are of this source;
/// every built file has a source.
pub(super) fn built_files(root: &Path, tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.texts() {
        let Some(name) = file.path.strip_prefix("ptx/") else { continue };
        if !(name.ends_with(".cu") || name.ends_with(".cuh")) {
            continue;
        }
        if !text.starts_with("//") {
            problems.push(Problem::at(&file.path, 1, "expected the file to open with `//`"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                let message = format!("longer than {COLUMNS_MAX} columns");
                problems.push(Problem::at(&file.path, number + 1, message));
            }
        }
        if let Some(stem) = name.strip_suffix(".cu") {
            problems.extend(stale(root, tree, stem));
        }
    }
    let has = |path: &str| tree.files.iter().any(|file| file.path == path);
    for file in &tree.files {
        let Some(name) = file.path.strip_prefix("ptx/") else { continue };
        let stem = name.strip_suffix(".ptx").or_else(|| name.strip_suffix(".fatbin"));
        if stem.is_some_and(|stem| !has(&format!("ptx/{stem}.cu"))) {
            problems.push(Problem::of(&file.path, "its source `.cu` is gone"));
        }
    }
    problems
}

/// Every shader opens by saying what it is, keeps to the line length, and is named in the list of
/// kernels, which is what embeds it.
pub(super) fn shaders(tree: &Tree) -> Vec<Problem> {
    let list = tree.texts().find(|(file, _)| file.path == SHADER_LIST).map_or("", |(_, text)| text);
    let mut problems = Vec::new();
    for (file, text) in tree.texts() {
        let Some(name) = file.path.strip_prefix("wgsl/") else { continue };
        let Some(stem) = name.strip_suffix(".wgsl") else { continue };
        if !text.starts_with("//") {
            problems.push(Problem::at(&file.path, 1, "expected the file to open with `//`"));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                let message = format!("longer than {COLUMNS_MAX} columns");
                problems.push(Problem::at(&file.path, number + 1, message));
            }
        }
        let named = [format!("\"{stem}\""), format!("/{stem}.wgsl\"")];
        if !named.iter().any(|name| list.contains(name)) {
            problems.push(Problem::of(&file.path, format!("is not named in {SHADER_LIST}")));
        }
    }
    problems
}

/// What is wrong with the built files of a source.
fn stale(root: &Path, tree: &Tree, stem: &str) -> Vec<Problem> {
    let path = format!("ptx/{stem}.ptx");
    let advice = format!("run `cargo xtask ptx {stem}`");
    let mut problems = Vec::new();
    let line = match source_line(root, stem) {
        Ok(line) => line,
        Err(message) => return vec![Problem::of(&format!("ptx/{stem}.cu"), message)],
    };
    match tree.texts().find(|(file, _)| file.path == path) {
        None => problems.push(Problem::of(&path, format!("is missing: {advice}"))),
        Some((_, text)) if text.lines().next() != Some(line.as_str()) => {
            problems.push(Problem::at(&path, 1, format!("built from another source: {advice}")));
        }
        Some(_) => {}
    }
    let path = format!("ptx/{stem}.fatbin");
    if !tree.files.iter().any(|file| file.path == path) {
        problems.push(Problem::of(&path, format!("is missing: {advice}")));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkout of one source, with what was built from it.
    fn problems(name: &str, source: &str, built: Option<&str>) -> Vec<String> {
        let root = std::env::temp_dir().join(format!("tidy-kernels-{name}-{}", std::process::id()));
        let folder = root.join("ptx");
        std::fs::create_dir_all(&folder).expect("a folder for the test");
        std::fs::write(folder.join("x.cu"), source).expect("a source for the test");
        let mut files = vec![("ptx/x.cu", source), ("ptx/x.fatbin", "")];
        files.extend(built.map(|text| ("ptx/x.ptx", text)));
        let found = built_files(&root, &Tree::of(&files));
        let line = source_line(&root, "x").expect("the source is there");
        std::fs::remove_dir_all(&root).expect("the test's own folder");
        let found = found.into_iter().map(|problem| problem.to_string());
        found.chain(std::iter::once(line)).collect()
    }

    #[test]
    fn what_was_built_from_another_source_is_found() {
        let found = problems("missing", "// a\n", None);
        assert!(found.len() == 2 && found[0].contains("is missing"), "{found:?}");
        let line = found[1].clone();
        assert_eq!(problems("same", "// a\n", Some(&line)).len(), 1);
        let found = problems("stale", "// b\n", Some(&line));
        assert!(found.len() == 2 && found[0].contains("another source"), "{found:?}");
        let found = problems("opening", "int a;\n", None);
        assert!(found[0].contains("open with"), "{found:?}");
    }

    #[test]
    fn a_shader_that_nothing_embeds_is_found() {
        let list = (SHADER_LIST, "A: \"a\"; include_str!(\"../wgsl/shared.wgsl\")");
        let good = [list, ("wgsl/a.wgsl", "// a\n"), ("wgsl/shared.wgsl", "// b\n")];
        assert_eq!(shaders(&Tree::of(&good)), []);
        let long = format!("// c\n{}\n", "x".repeat(101));
        let found = shaders(&Tree::of(&[list, ("wgsl/c.wgsl", &long), ("wgsl/a.wgsl", "fn\n")]));
        let found: Vec<String> = found.iter().map(Problem::to_string).collect();
        assert!(found.len() == 3 && found[0].contains("wgsl/c.wgsl:2"), "{found:?}");
        assert!(found[1].contains("not named") && found[2].contains("open with"), "{found:?}");
    }

    #[test]
    fn a_built_file_without_a_source_is_found() {
        let tree = Tree::of(&[("ptx/gone.ptx", ""), ("ptx/gone.fatbin", "")]);
        assert_eq!(built_files(Path::new("/nowhere"), &tree).len(), 2);
    }
}
