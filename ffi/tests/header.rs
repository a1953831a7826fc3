//! The header as a C and as a C++ compiler read it, and the libraries behind it as a program links them.

use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "
#include <stdio.h>
#include \"stillframe.h\"

int main(void) {
    return puts(sf_version()) < 0;
}
";

/// What the static library needs of the system.
const SYSTEM: &[&str] = &["-lpthread", "-ldl", "-lm"];

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(out.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Builds the libraries, which tests do not get built by themselves; returns their directory.
fn libraries() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    run(cargo.args(["build", "--quiet", "--package", "stillframe-ffi", "--target-dir"]).arg(target));
    target.join("debug")
}

/// Compiles and links the program, and runs it.
fn says(compiler: &str, language: &[&str], link: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("program"), dir.path().join("a.out"));
    std::fs::write(&source, PROGRAM).unwrap();
    let libraries = libraries();
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("../include");
    let mut cc = Command::new(compiler);
    cc.args(language).args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(include).arg(&source).args(["-x", "none", "-o"]).arg(&program);
    run(cc.arg("-L").arg(&libraries).args(link).args(SYSTEM));
    run(Command::new(program).env("LD_LIBRARY_PATH", libraries)).trim().to_owned()
}

#[test]
fn a_c_program_links_the_shared_library() {
    assert_eq!(says("cc", &["-std=c11", "-x", "c"], &["-l:libstillframe.so"]), env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_c_program_links_the_static_library() {
    assert_eq!(says("cc", &["-std=c11", "-x", "c"], &["-l:libstillframe.a"]), env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_cpp_program_reads_the_header() {
    if Command::new("c++").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no C++ compiler");
        return;
    }
    assert_eq!(says("c++", &["-std=c++17", "-x", "c++"], &["-l:libstillframe.so"]), env!("CARGO_PKG_VERSION"));
}
