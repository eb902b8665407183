//! Rules about the texts beside the code: changelog, README, and what must not leak into any.
//!
//! Whether a README command is accepted is the command line's own answer; see the package
//! `neural-forecast-tests`, which parses [`readme_commands`] with it.

use super::{Problem, Tree};

/// The released version has a changelog entry.
pub(super) fn changelog_entry(tree: &Tree) -> Vec<Problem> {
    let Some(version) = tree.text("Cargo.toml").and_then(workspace_version) else {
        return vec![Problem::of("Cargo.toml", "expected `version` under `[workspace.package]`")];
    };
    let Some(changelog) = tree.text("CHANGELOG.md") else {
        return vec![Problem::of("CHANGELOG.md", "expected the file")];
    };
    let headings = changelog.lines().filter_map(|line| line.strip_prefix("## "));
    let names_version =
        |heading: &str| heading.trim_start_matches('[').split([']', ' ']).next() == Some(version);
    if headings.into_iter().any(names_version) {
        return Vec::new();
    }
    vec![Problem::of("CHANGELOG.md", format!("expected a heading `## [{version}]`"))]
}

fn workspace_version(manifest: &str) -> Option<&str> {
    let section = manifest.split("[workspace.package]").nth(1)?;
    let line = section.lines().find(|line| line.starts_with("version"))?;
    line.split('"').nth(1)
}

/// Each line in the README's code blocks that runs `neural-forecast`, as its arguments.
///
/// A leading `$ ` and a continued line (`\`) are understood; the line is split at spaces, with
/// quotes kept together; everything from a pipe, a redirection or a `#` on is left out.
#[must_use]
pub fn readme_commands(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut commands = Vec::new();
    // Blocks of another language than a shell's quote no command.
    let shells = ["```", "```sh", "```bash", "```console"];
    let mut block = None;
    let mut pending: Option<(usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with("```") {
            block = if block.is_some() { None } else { Some(shells.contains(&line)) };
            continue;
        }
        if block != Some(true) {
            continue;
        }
        let (start, joined) = match pending.take() {
            Some((start, before)) => (start, format!("{before} {line}")),
            None => (index + 1, line.to_string()),
        };
        match joined.strip_suffix('\\') {
            Some(continued) => pending = Some((start, continued.trim_end().to_string())),
            None => commands.extend(program_arguments(&joined).map(|found| (start, found))),
        }
    }
    commands
}

/// The arguments after the program's name, where the line runs it directly or through cargo.
fn program_arguments(line: &str) -> Option<Vec<String>> {
    let words = shell_words(line.strip_prefix("$ ").unwrap_or(line));
    let first = words.first()?;
    if first == "neural-forecast" || first.ends_with("/neural-forecast") {
        return Some(words[1..].to_vec());
    }
    let runs_it = first == "cargo" && words.iter().any(|word| word == "neural-forecast-cli");
    let after = words.iter().position(|word| word == "--")?;
    (runs_it && words.get(1).is_some_and(|word| word == "run")).then(|| words[after + 1..].to_vec())
}

fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut open = false;
    for c in line.chars() {
        match quote {
            Some(mark) if c == mark => quote = None,
            Some(_) => word.push(c),
            None if c == '"' || c == '\'' => (quote, open) = (Some(c), true),
            None if c == '|' || c == '>' || c == '<' || c == ';' => break,
            None if c == '#' && word.is_empty() => break,
            None if c.is_whitespace() => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                open = false;
            }
            None => word.push(c),
        }
    }
    if open || !word.is_empty() {
        words.push(word);
    }
    words
}

/// Folders of one developer's machine mean nothing to the next.
pub(super) fn machine_paths(tree: &Tree) -> Vec<Problem> {
    // Written in pieces, so that the rule does not find itself.
    let folders = [concat!("/wo", "rk"), concat!("/ro", "ot"), concat!("/ho", "me")];
    let mut problems = Vec::new();
    for (file, text) in tree.texts() {
        for (index, line) in text.lines().enumerate() {
            for folder in folders.iter().filter(|folder| names_folder(line, folder)) {
                let message = format!("`{folder}` is a folder of one machine");
                problems.push(Problem::at(&file.path, index + 1, message));
            }
        }
    }
    problems
}

fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + folder.len()..].chars().next();
        let starts = before.is_none_or(|c| !c.is_alphanumeric() && !"/._-*~)]}".contains(c));
        starts && after == Some('/')
    })
}

/// Addresses that only one network knows: hosts without a domain, private numbers and suffixes.
pub(super) fn private_hosts(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (file, text) in tree.texts() {
        for (index, line) in text.lines().enumerate() {
            for host in hosts(line).filter(|host| is_private(host)) {
                let message = format!("`{host}` is an address of one network");
                problems.push(Problem::at(&file.path, index + 1, message));
            }
        }
    }
    problems
}

fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.split("://").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c));
        rest[..end.unwrap_or(rest.len())].trim_end_matches('.')
    })
}

fn is_private(host: &str) -> bool {
    const SUFFIXES: [&str; 5] = [".internal", ".local", ".lan", ".corp", ".intra"];
    let here = ["localhost", "127.0.0.1", "0.0.0.0", ""].contains(&host);
    let numbers = host.split('.').all(|part| part.parse::<u8>().is_ok());
    !here && (numbers || !host.contains('.') || SUFFIXES.iter().any(|end| host.ends_with(end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "[workspace]\n[workspace.package]\nversion = \"1.2.3\"\n";

    #[test]
    fn a_version_without_an_entry_is_found() {
        let found = |changelog: &str| {
            changelog_entry(&Tree::of(&[("Cargo.toml", MANIFEST), ("CHANGELOG.md", changelog)]))
        };
        assert_eq!(found("# Changelog\n## [1.2.3] - 2026-01-01\n"), []);
        assert_eq!(found("## 1.2.3\n"), []);
        assert_eq!(found("## [1.2.30]\n1.2.3\n").len(), 1);
        assert_eq!(changelog_entry(&Tree::of(&[("Cargo.toml", MANIFEST)])).len(), 1);
        assert_eq!(changelog_entry(&Tree::of(&[("CHANGELOG.md", "## 1.2.3")])).len(), 1);
    }

    #[test]
    fn commands_are_read_from_code_blocks() {
        let text = "neural-forecast outside\n```sh\n$ neural-forecast forecast a.csv --plot > b\n\
                    cargo run --release -p neural-forecast-cli -- devices --json | jq .\n\
                    neural-forecast evaluate 'my data.csv' \\\n  --model m # comment\n\
                    cargo test\n```\nneural-forecast after\n\
                    ```toml\nneural-forecast = \"0.1\"\n```\n";
        let expected: [(usize, &[&str]); 3] = [
            (3, &["forecast", "a.csv", "--plot"]),
            (4, &["devices", "--json"]),
            (5, &["evaluate", "my data.csv", "--model", "m"]),
        ];
        let found = readme_commands(text);
        assert_eq!(found.len(), expected.len());
        for ((line, words), (expected_line, expected_words)) in found.iter().zip(expected) {
            assert_eq!((*line, words.join("|")), (expected_line, expected_words.join("|")));
        }
    }

    #[test]
    fn folders_of_one_machine_are_found() {
        let text = concat!("a\nsee /wo", "rk/x\n\"/ro", "ot/y\"\n/wo", "rkspace/z\nnet/wo", "rk/a");
        let found = machine_paths(&Tree::of(&[("a.md", text)]));
        assert_eq!(found.iter().map(|p| p.line).collect::<Vec<_>>(), [Some(2), Some(3)]);
    }

    #[test]
    fn addresses_of_one_network_are_found() {
        // `@` stands for the separator, so that the rule does not find this test.
        let text = "https@docs.rs/x\nhttp@localhost:80\nhttp@10.1.2.3/\nhttps@mirror/a\n\
                    https@pkg.corp/b\nftp@x.internal.\n";
        let tree = Tree::of(&[("a.md", &text.replace('@', "://"))]);
        let lines: Vec<_> = private_hosts(&tree).iter().map(|p| p.line).collect();
        assert_eq!(lines, [Some(3), Some(4), Some(5), Some(6)]);
    }
}
