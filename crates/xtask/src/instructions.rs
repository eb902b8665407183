//! `cargo xtask instructions`: how many instructions one forward pass takes, by callgrind, compared
//! with `benches/instructions.txt`.
//!
//! Time on a shared machine hides a loss of ten per cent; a count does not. It is no measure of
//! speed: it says that the code has changed, not whether it got slower. Valgrind knows no AVX-512,
//! so the tiers counted are `avx2` and `portable`. A count depends on the compiler, so a table of
//! another one is not compared.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where the counts are kept.
const TABLE: &str = "benches/instructions.txt";

/// The tiers that valgrind can run.
const TIERS: [&str; 2] = ["avx2", "portable"];

/// By how much a count may differ from the table, of the table's. Counts repeat to the last few
/// hundred; this leaves room for the C library's own copies and for the linker's layout.
const TOLERANCE: f64 = 0.015;

/// One counted case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    tier: String,
    case: String,
    instructions: u64,
}

/// The committed counts and the compiler that they hold for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    compiler: String,
    rows: Vec<Row>,
}

/// Runs the task: `instructions [--check|--write]`; without either it prints the counts.
#[must_use]
pub fn run(root: &Path, arguments: &[String]) -> ExitCode {
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => count(root).map(|rows| lines(&rows)),
        ["--check"] => check(root),
        ["--write"] => write(root),
        _ => Err("usage: cargo xtask instructions [--check|--write]".into()),
    };
    match done {
        Ok(report) => {
            println!("{}", report.trim_end());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("{}", message.trim_end());
            ExitCode::FAILURE
        }
    }
}

fn check(root: &Path) -> Result<String, String> {
    let path = root.join(TABLE);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let table = parse(&text).map_err(|message| format!("{TABLE}: {message}"))?;
    let compiler = compiler()?;
    if compiler != table.compiler {
        let written = table.compiler;
        return Ok(format!("skipped: {TABLE} is of {written}, this is {compiler}"));
    }
    compare(&table.rows, &count(root)?)
}

fn write(root: &Path) -> Result<String, String> {
    let (compiler, rows) = (compiler()?, count(root)?);
    let text = format!(
        "# Instructions of one forward pass on one thread, by callgrind: tier, case, count.\n\
         # Written by `cargo xtask instructions --write`, compared by `--check`; the cases are in\n\
         # crates/neural-forecast-cpu/examples/instructions.rs. Valgrind runs no AVX-512.\n\
         compiler: {compiler}\n{}",
        lines(&rows)
    );
    std::fs::write(root.join(TABLE), &text).map_err(|e| format!("{TABLE}: {e}"))?;
    Ok(text)
}

fn lines(rows: &[Row]) -> String {
    let line = |row: &Row| format!("{} {} {}\n", row.tier, row.case, row.instructions);
    rows.iter().map(line).collect()
}

fn parse(text: &str) -> Result<Table, String> {
    let mut table = Table::default();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(compiler) = line.strip_prefix("compiler: ") {
            table.compiler = compiler.to_owned();
            continue;
        }
        let wrong = || format!("expected `tier case count`, found `{line}`");
        let [tier, case, count] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let instructions = count.parse().map_err(|_| wrong())?;
        table.rows.push(Row { tier: tier.into(), case: case.into(), instructions });
    }
    if table.compiler.is_empty() {
        return Err("has no line `compiler: …`".into());
    }
    Ok(table)
}

/// One line a row; an error where a row is off, missing or new.
fn compare(expected: &[Row], found: &[Row]) -> Result<String, String> {
    let same = |a: &Row, b: &Row| a.tier == b.tier && a.case == b.case;
    let (mut report, mut wrong) = (String::new(), String::new());
    for row in found {
        let Some(old) = expected.iter().find(|old| same(old, row)) else {
            let _ = writeln!(wrong, "{} {}: not in {TABLE}", row.tier, row.case);
            continue;
        };
        let change = row.instructions as f64 / old.instructions.max(1) as f64 - 1.0;
        let line = format!(
            "{} {}: {} instructions, {:+.2}% of {}",
            row.tier,
            row.case,
            row.instructions,
            100.0 * change,
            old.instructions
        );
        let _ = writeln!(report, "{line}");
        if change.abs() > TOLERANCE {
            let _ = writeln!(wrong, "{line}, allowed ±{:.1}%", 100.0 * TOLERANCE);
        }
    }
    for old in expected.iter().filter(|old| !found.iter().any(|row| same(old, row))) {
        let _ = writeln!(wrong, "{} {}: in {TABLE}, but not counted", old.tier, old.case);
    }
    if wrong.is_empty() {
        return Ok(report);
    }
    wrong.push_str("if that is meant, run `cargo xtask instructions --write` and commit\n");
    Err(wrong)
}

fn count(root: &Path) -> Result<Vec<Row>, String> {
    let program = build(root)?;
    let cases = output(Command::new(&program).arg("--list"))?.0;
    let mut rows = Vec::new();
    for tier in TIERS {
        for case in cases.lines() {
            rows.push(Row {
                tier: tier.into(),
                case: case.into(),
                instructions: count_one(&program, tier, case)?,
            });
        }
    }
    Ok(rows)
}

/// Builds the example that holds the cases, as it ships: optimised.
fn build(root: &Path) -> Result<PathBuf, String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root).args(["build", "--quiet", "--release", "--locked"]);
    cargo.args(["--package", "neural-forecast-cpu", "--example", "instructions"]);
    // Flags of the environment would make other code than the table's.
    cargo.arg("--message-format=json").env_remove("RUSTFLAGS");
    let (messages, _) = output(&mut cargo)?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    };
    messages.lines().filter_map(executable).next_back().ok_or("cargo named no executable".into())
}

fn count_one(program: &Path, tier: &str, case: &str) -> Result<u64, String> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg("--toggle-collect=*counted_run*").arg(program).arg(case);
    valgrind.env("NF_CPU_ISA", tier);
    let (_, report) = output(&mut valgrind)?;
    collected(&report)
        .filter(|&count| count > 0)
        .ok_or_else(|| format!("{tier} {case}: callgrind counted nothing:\n{report}"))
}

/// The number in callgrind's `Collected : N`.
fn collected(report: &str) -> Option<u64> {
    let line = report.lines().find_map(|line| line.split_once("Collected : "))?.1;
    line.split_whitespace().next()?.parse().ok()
}

fn compiler() -> Result<String, String> {
    let (version, _) = output(Command::new("rustc").arg("--version"))?;
    Ok(version.trim().to_owned())
}

/// What a program writes to its output and to its errors.
fn output(command: &mut Command) -> Result<(String, String), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command.output().map_err(|e| format!("{name}: {e}; is it installed?"))?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, errors) = (text(done.stdout), text(done.stderr));
    if !done.status.success() {
        return Err(format!("{name} failed ({}):\n{errors}", done.status));
    }
    Ok((out, errors))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(case: &str, instructions: u64) -> Row {
        Row { tier: "avx2".into(), case: case.into(), instructions }
    }

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let rows = vec![row("lstm", 12), row("gru", 7)];
        let text = format!("# note\ncompiler: rustc 1.0.0 (x)\n{}", lines(&rows));
        assert_eq!(parse(&text), Ok(Table { compiler: "rustc 1.0.0 (x)".into(), rows }));
        for wrong in ["avx2 lstm 12\n", "compiler: a\navx2 lstm\n", "compiler: a\navx2 lstm x\n"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_row_that_is_off_missing_or_new_is_named() {
        let table = [row("lstm", 100_000), row("gru", 100_000)];
        assert!(compare(&table, &[row("lstm", 101_400), row("gru", 98_600)]).is_ok());
        for (case, found) in [
            ("gru", vec![row("lstm", 100_000), row("gru", 101_600)]),
            ("gru", vec![row("lstm", 100_000), row("gru", 98_400)]),
            ("gru", vec![row("lstm", 100_000)]),
            ("new", vec![row("lstm", 100_000), row("gru", 100_000), row("new", 1)]),
        ] {
            let message = compare(&table, &found).unwrap_err();
            assert!(message.contains(case) && !message.contains("lstm"), "{message}");
        }
    }

    #[test]
    fn the_count_is_found_in_callgrinds_report() {
        let report = "==7== Events    : Ir\n==7== Collected : 123456\n==7==\n";
        assert_eq!(collected(report), Some(123_456));
        assert_eq!(collected("==7== Events    : Ir\n"), None);
    }
}
