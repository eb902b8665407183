//! Rules about Rust source: module docs, line length, names, unfinished code, unsafe code.
//!
//! Formatting and lints are rustfmt's and clippy's; nothing here repeats them.

use super::lexer::{code_only, words};
use super::{Problem, Tree};

const LINE_CHARS_MAX: usize = 100;

/// Names that say nothing about what a file holds.
const NAMES_BANNED: [&str; 7] = ["base", "utils", "common", "helpers", "misc", "types", "core"];

/// Macros that mark code as unfinished.
const MACROS_BANNED: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// The only places where `unsafe` may stand: the SIMD and CUDA backends, and the runtime's system
/// calls.
const UNSAFE_PLACES: [&str; 5] = [
    "crates/neural-forecast-cpu/",
    "crates/neural-forecast-cuda/",
    "crates/neural-forecast-runtime/src/sys.rs",
    "crates/neural-forecast-runtime/src/sys/",
    "crates/neural-forecast-wgpu/src/experiments.rs",
];

const RUNTIME: &str = "crates/neural-forecast-runtime/";
const WGPU: &str = "crates/neural-forecast-wgpu/";

/// Every file opens by saying what it is.
pub(super) fn module_docs(tree: &Tree) -> Vec<Problem> {
    tree.rust()
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(file, _)| Problem::at(&file.path, 1, "expected the file to open with `//!`"))
        .collect()
}

/// Lines stay readable side by side.
pub(super) fn line_length(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.rust() {
        for (index, line) in text.lines().enumerate() {
            let chars = line.chars().count();
            if chars > LINE_CHARS_MAX {
                let message =
                    format!("expected at most {LINE_CHARS_MAX} characters, found {chars}");
                problems.push(Problem::at(&file.path, index + 1, message));
            }
        }
    }
    problems
}

/// Files and folders of source are named after what they hold.
pub(super) fn banned_names(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.rust() {
        let parts = file.path.trim_end_matches(".rs").split('/');
        for part in parts.filter(|part| NAMES_BANNED.contains(part)) {
            problems.push(Problem::of(&file.path, format!("`{part}` is no name for a file")));
        }
        let code = code_only(text);
        let mut previous = "";
        for (line, word) in words(&code) {
            if previous == "mod" && NAMES_BANNED.contains(&word) {
                let message = format!("`{word}` is no name for a module");
                problems.push(Problem::at(&file.path, line, message));
            }
            previous = word;
        }
    }
    problems
}

/// Nothing unfinished is committed.
pub(super) fn banned_macros(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.rust() {
        for (index, line) in code_only(text).lines().enumerate() {
            for name in MACROS_BANNED {
                if calls_macro(line, name) {
                    let message = format!("`{name}!` marks unfinished code");
                    problems.push(Problem::at(&file.path, index + 1, message));
                }
            }
        }
    }
    problems
}

fn calls_macro(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        line[at + name.len()..].starts_with('!')
            && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// `unsafe` stands only where the map of the workspace says so.
pub(super) fn unsafe_places(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.rust() {
        if UNSAFE_PLACES.iter().any(|place| file.path.starts_with(place)) {
            continue;
        }
        for (line, _) in words(&code_only(text)).filter(|(_, word)| *word == "unsafe") {
            problems.push(Problem::at(&file.path, line, "`unsafe` is not allowed in this place"));
        }
    }
    problems
}

/// Every crate root asks the compiler to hold the rule of [`unsafe_places`].
pub(super) fn unsafe_lints(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.rust().filter(|(file, _)| is_crate_root(&file.path)) {
        let expected = match file.path.as_str() {
            path if path.starts_with("crates/neural-forecast-cpu/") => continue,
            path if path.starts_with("crates/neural-forecast-cuda/") => continue,
            path if path.starts_with(RUNTIME) || path.starts_with(WGPU) => "#![deny(unsafe_code)]",
            _ => "#![forbid(unsafe_code)]",
        };
        if !text.lines().any(|line| line.trim() == expected) {
            problems.push(Problem::of(&file.path, format!("expected the line `{expected}`")));
        }
    }
    problems
}

fn is_crate_root(path: &str) -> bool {
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    is_root && matches!(path.matches('/').count(), 2 | 3)
}

/// The runtime opens no file and no connection outside its `sys` module.
pub(super) fn runtime_is_pure(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    let outside_sys = |path: &str| {
        path.starts_with("crates/neural-forecast-runtime/src/")
            && !UNSAFE_PLACES.iter().any(|place| path.starts_with(place))
    };
    for (file, text) in tree.rust().filter(|(file, _)| outside_sys(&file.path)) {
        for (index, line) in code_only(text).lines().enumerate() {
            for path in ["std::fs", "std::net", "std::process"] {
                if line.contains(path) {
                    let message = format!("the runtime does no input or output, found `{path}`");
                    problems.push(Problem::at(&file.path, index + 1, message));
                }
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(problems: &[Problem]) -> Vec<(&str, Option<usize>)> {
        problems.iter().map(|p| (p.place.as_str(), p.line)).collect()
    }

    #[test]
    fn a_file_without_module_docs_is_found() {
        let tree = Tree::of(&[("a.rs", "//! Says what.\n"), ("b.rs", "use std::fs;\n"), ("c", "")]);
        assert_eq!(lines(&module_docs(&tree)), [("b.rs", Some(1))]);
    }

    #[test]
    fn a_long_line_is_found_by_characters_not_bytes() {
        let fits = "µ".repeat(LINE_CHARS_MAX);
        let long = format!("\n{}", "x".repeat(LINE_CHARS_MAX + 1));
        let tree = Tree::of(&[("a.rs", &fits), ("b.rs", &long), ("c.md", &long)]);
        assert_eq!(lines(&line_length(&tree)), [("b.rs", Some(2))]);
    }

    #[test]
    fn names_that_say_nothing_are_found_in_files_folders_and_modules() {
        let tree = Tree::of(&[
            ("crates/x/src/utils.rs", ""),
            ("crates/x/src/common/a.rs", ""),
            ("crates/x/src/b.rs", "mod gate;\npub mod helpers { }\n// mod misc\n"),
            ("crates/x/src/basement.rs", "use core::fmt;"),
        ]);
        assert_eq!(
            lines(&banned_names(&tree)),
            [
                ("crates/x/src/utils.rs", None),
                ("crates/x/src/common/a.rs", None),
                ("crates/x/src/b.rs", Some(2)),
            ]
        );
    }

    #[test]
    fn unfinished_code_is_found_and_talk_about_it_is_not() {
        let text = "fn a() { dbg!(1); }\nfn b() { todo!() }\n// todo!()\nlet s = \"dbg!(x)\";\n\
                    my_dbg!(2);\n";
        let tree = Tree::of(&[("a.rs", text)]);
        assert_eq!(lines(&banned_macros(&tree)), [("a.rs", Some(1)), ("a.rs", Some(2))]);
    }

    #[test]
    fn unsafe_outside_its_places_is_found() {
        let text = "//! unsafe\n#![forbid(unsafe_code)]\nfn f() { unsafe { g() } }\n";
        let tree = Tree::of(&[
            ("crates/neural-forecast-cpu/src/simd.rs", text),
            ("crates/neural-forecast-runtime/src/sys/map.rs", text),
            ("crates/neural-forecast-runtime/src/system.rs", text),
            ("crates/neural-forecast/src/lib.rs", text),
        ]);
        assert_eq!(
            lines(&unsafe_places(&tree)),
            [
                ("crates/neural-forecast-runtime/src/system.rs", Some(3)),
                ("crates/neural-forecast/src/lib.rs", Some(3)),
            ]
        );
    }

    #[test]
    fn a_crate_root_without_its_lint_is_found() {
        let tree = Tree::of(&[
            ("crates/neural-forecast-cpu/src/lib.rs", ""),
            ("crates/neural-forecast-runtime/src/lib.rs", "#![forbid(unsafe_code)]"),
            ("crates/neural-forecast/src/lib.rs", "#![forbid(unsafe_code)]"),
            ("crates/neural-forecast/src/models/lib.rs", ""),
            ("tests/src/lib.rs", "// #![forbid(unsafe_code)]"),
        ]);
        assert_eq!(
            lines(&unsafe_lints(&tree)),
            [("crates/neural-forecast-runtime/src/lib.rs", None), ("tests/src/lib.rs", None)]
        );
    }

    #[test]
    fn input_and_output_in_the_runtime_are_found() {
        let tree = Tree::of(&[
            ("crates/neural-forecast-runtime/src/plan.rs", "use std::fmt;\nuse std::fs::File;"),
            ("crates/neural-forecast-runtime/src/sys.rs", "use std::fs::File;"),
            ("crates/neural-forecast/src/frame.rs", "use std::fs::File;"),
        ]);
        assert_eq!(
            lines(&runtime_is_pure(&tree)),
            [("crates/neural-forecast-runtime/src/plan.rs", Some(2))]
        );
    }
}
