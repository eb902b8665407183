//! The README's promises: its commands exist, its files exist, its tests are one command.

use clap::Parser as _;
use neural_forecast_cli::args::Cli;
use xtask::tidy::readme_commands;
use xtask::workspace_root;

fn readme() -> String {
    std::fs::read_to_string(workspace_root().join("README.md")).unwrap()
}

#[test]
fn every_command_of_the_readme_is_understood_by_the_program() {
    let commands = readme_commands(&readme());
    let mut failures = Vec::new();
    for (line, words) in &commands {
        let all = std::iter::once("neural-forecast").chain(words.iter().map(String::as_str));
        if let Err(error) = Cli::try_parse_from(all) {
            failures.push(format!("README.md:{line}: {error}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let mentions = |name: &str| commands.iter().any(|(_, words)| words[0] == name);
    for name in ["forecast", "evaluate", "inspect", "verify", "devices", "bench", "completions"] {
        assert!(mentions(name), "the README shows no `{name}`");
    }
}

#[test]
fn a_flag_that_does_not_exist_would_be_found() {
    let commands = readme_commands("```sh\nneural-forecast forecast a.csv --magic\n```\n");
    let words = std::iter::once("neural-forecast").chain(commands[0].1.iter().map(String::as_str));
    assert!(Cli::try_parse_from(words).is_err());
}

#[test]
fn every_file_that_the_readme_links_to_exists() {
    let text = readme();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.contains("://")) {
        assert!(workspace_root().join(link).exists(), "README.md links to {link}");
    }
    // What the picture shows is checked where it is drawn; here, that it is one.
    let picture = workspace_root().join("crates/neural-forecast-cli/examples/visitors.svg");
    assert!(std::fs::read_to_string(picture).unwrap().starts_with("<svg "));
}
