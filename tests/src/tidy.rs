//! The rules of `cargo xtask tidy` as a test. The rules themselves are in `xtask::tidy`.

#[test]
fn the_checkout_is_tidy() {
    let problems = xtask::tidy::check(&xtask::workspace_root()).unwrap();
    let listed: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(listed.is_empty(), "{} problems:\n{}", listed.len(), listed.join("\n"));
}
