//! What the README tells a newcomer to run.

use std::path::Path;
use std::process::Command;

/// Cargo builds examples with the tests; asked for this test alone, it would not.
fn example(name: &str) -> Command {
    let built = Command::new(env!("CARGO")).args(["build", "--quiet", "--example", name]).status().unwrap();
    assert!(built.success(), "cargo build --example {name}");
    Command::new(Path::new(env!("CARGO_BIN_EXE_stillframe")).with_file_name("examples").join(name))
}

#[test]
fn a_second_instance_goes_on_from_the_frame() {
    let out = example("second_instance").output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.lines().last().unwrap_or_default().contains("went on"), "{said}");
}

#[test]
fn a_program_takes_a_frame_of_itself_and_goes_on_twice() {
    let mut example = example("self_checkpoint");
    let out = example.env("STILLFRAME_COMMAND", env!("CARGO_BIN_EXE_stillframe")).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("first instance: self@1 is safe") && said.contains("second instance: its numbers are right, its thread counted to 19900"), "{said}");
}
