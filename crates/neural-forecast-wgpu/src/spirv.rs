//! Translated shaders before the reference validator of SPIR-V, `spirv-val`.
//!
//! Where the program is missing nothing is checked, which is printed once; `NF_REQUIRE=spirv-val`
//! makes that a failure.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use neural_forecast_runtime::testing::device_or_skip;

const PROGRAM: &str = "spirv-val";

/// Whether the program is there.
fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| {
        let asked = Command::new(PROGRAM).arg("--version").output();
        let found = asked.map_err(|error| format!("`{PROGRAM}`: {error}"));
        device_or_skip(PROGRAM, found).is_some()
    })
}

/// Validates a module against Vulkan 1.0, which naga writes for by default.
///
/// # Errors
/// What the validator says.
pub(crate) fn check(words: &[u32]) -> Result<(), String> {
    if !is_there() {
        return Ok(());
    }
    let failed = |error: std::io::Error| format!("`{PROGRAM}`: {error}");
    let mut command = Command::new(PROGRAM);
    command.args(["--target-env", "vulkan1.0", "-"]);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A validator that stops reading says why on its own.
        let _ = input.write_all(bytemuck::cast_slice(words));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let (told, more) = (output.stdout, output.stderr);
    Err(format!("{}{}", String::from_utf8_lossy(&told), String::from_utf8_lossy(&more)))
}

#[test]
fn what_is_no_module_does_not_pass() {
    if is_there() {
        assert!(check(&[0, 1, 2, 3]).is_err());
    }
}
