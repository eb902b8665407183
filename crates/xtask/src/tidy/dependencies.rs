//! Rules about the dependency graph, asked of cargo itself.
//!
//! Licences, sources and banned crates are cargo-deny's business (`deny.toml`).

use super::Problem;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Which package of the workspace may depend on which: everything points downwards.
/// `neural-forecast-tests` and `neural-forecast-benches` may see all of them.
const DIRECTION: [(&str, &[&str]); 7] = [
    ("neural-forecast-cli", &["neural-forecast"]),
    (
        "neural-forecast",
        &[
            "neural-forecast-cpu",
            "neural-forecast-cuda",
            "neural-forecast-runtime",
            "neural-forecast-wgpu",
        ],
    ),
    ("neural-forecast-wgpu", &["neural-forecast-runtime"]),
    ("neural-forecast-cuda", &["neural-forecast-runtime"]),
    ("neural-forecast-cpu", &["neural-forecast-runtime"]),
    ("neural-forecast-runtime", &[]),
    ("xtask", &[]),
];

const SEES_ALL: [&str; 2] = ["neural-forecast-tests", "neural-forecast-benches"];

/// What the runtime may use besides the standard library: number formats and system calls.
/// No file format, no network, no thread pool, no async runtime.
const RUNTIME_MAY_USE: [&str; 3] = ["half", "libc", "memmap2"];

/// The library without optional features, itself included, stays below this many crates.
const LIBRARY_CRATES_MAX: usize = 59;

/// `cargo metadata` of the workspace, without the packages outside of it.
///
/// # Errors
/// When cargo cannot run or answers with something else.
pub(super) fn metadata(root: &Path) -> Result<Value, String> {
    let text = cargo(root, &["metadata", "--no-deps", "--format-version", "1"])?;
    serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))
}

/// The crates that `neural-forecast` is built from, one a line, repeated where shared.
///
/// # Errors
/// When cargo cannot run.
pub(super) fn library_tree(root: &Path) -> Result<String, String> {
    let format = ["--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let mut arguments = vec!["tree", "--package", "neural-forecast"];
    arguments.extend(format);
    cargo(root, &arguments)
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<String, String> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program).args(arguments).current_dir(root).output();
    let output = output.map_err(|e| format!("cargo {}: {e}", arguments[0]))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo {}: {}", arguments[0], reason.trim()));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("cargo {}: {e}", arguments[0]))
}

/// Each package depends only on those below it, and the runtime on next to nothing.
pub(super) fn direction(metadata: &Value) -> Vec<Problem> {
    let packages = || metadata["packages"].as_array().into_iter().flatten();
    let members: BTreeSet<&str> = packages().filter_map(|p| p["name"].as_str()).collect();
    let mut problems = Vec::new();
    for package in packages() {
        let name = package["name"].as_str().unwrap_or_default();
        if SEES_ALL.contains(&name) {
            continue;
        }
        let Some((_, below)) = DIRECTION.iter().find(|(known, _)| *known == name) else {
            let message = "has no line in the table of dependency directions";
            problems.push(Problem::of(name, message));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let used = dependency["name"].as_str().unwrap_or_default();
            let message = if members.contains(used) && !below.contains(&used) {
                format!("must not depend on `{used}`, only on {below:?}")
            } else if is_foreign_to_runtime(name, used, &dependency["kind"]) {
                format!("may use {RUNTIME_MAY_USE:?}, found `{used}`")
            } else {
                continue;
            };
            problems.push(Problem::of(name, message));
        }
    }
    problems
}

fn is_foreign_to_runtime(package: &str, used: &str, kind: &Value) -> bool {
    package == "neural-forecast-runtime" && kind.is_null() && !RUNTIME_MAY_USE.contains(&used)
}

/// The library stays small to depend on.
pub(super) fn tree_size(tree: &str) -> Vec<Problem> {
    let name = |line: &str| line.trim_end_matches(" (*)").trim_end_matches(" (proc-macro)").into();
    let crates: BTreeSet<String> = tree.lines().filter(|line| !line.is_empty()).map(name).collect();
    if (1..=LIBRARY_CRATES_MAX).contains(&crates.len()) {
        return Vec::new();
    }
    let message = format!(
        "expected 1 to {LIBRARY_CRATES_MAX} crates without features, found {}",
        crates.len()
    );
    vec![Problem::of("neural-forecast", message)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workspace(name: &str, uses: &[(&str, Value)]) -> Value {
        let dependencies: Vec<Value> =
            uses.iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        let member = |name: &str| json!({"name": name, "dependencies": []});
        json!({"packages": [
            {"name": name, "dependencies": dependencies},
            member("neural-forecast-tests"), member("neural-forecast-cli"),
        ]})
    }

    #[test]
    fn a_dependency_that_points_upwards_is_found() {
        let up = [("neural-forecast-cli", Value::Null), ("csv", Value::Null)];
        assert_eq!(direction(&workspace("neural-forecast", &up)).len(), 1);
        let dev = [("neural-forecast-cli", json!("dev"))];
        assert_eq!(direction(&workspace("neural-forecast-cpu", &dev)).len(), 1);
        assert_eq!(direction(&workspace("neural-forecast-benches", &up)), []);
    }

    #[test]
    fn a_package_that_nobody_placed_is_found() {
        assert_eq!(direction(&workspace("neural-forecast-extra", &[])).len(), 1);
    }

    #[test]
    fn the_runtime_gets_no_file_format_but_its_tests_may() {
        let uses = |kind| [("half", Value::Null), ("safetensors", kind)];
        let found = |kind| direction(&workspace("neural-forecast-runtime", &uses(kind))).len();
        assert_eq!(found(Value::Null), 1);
        assert_eq!(found(json!("dev")), 0);
    }

    #[test]
    fn a_big_or_empty_tree_is_found() {
        let lines = |count: usize| -> String {
            (0..count).map(|i| format!("crate-{i} v1.0.0\ncrate-{i} v1.0.0 (*)\n")).collect()
        };
        assert_eq!(tree_size(&lines(LIBRARY_CRATES_MAX)), []);
        assert_eq!(tree_size(&lines(LIBRARY_CRATES_MAX + 1)).len(), 1);
        assert_eq!(tree_size("").len(), 1);
    }
}
