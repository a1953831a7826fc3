//! The library as it is installed: C and C++ programs find it by pkg-config, link it both ways and run.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const C: &[&str] = &["cc", "-std=c11", "-pthread"];
const CPP: &[&str] = &["c++", "-std=c++17", "-x", "c++", "-pthread"];
const SIGKILL: i32 = 9;
const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-O1", "-g"];

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}\n{}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Where all tests find the library; installed once.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let prefix = scratch.join("installed");
        let _ = fs::remove_dir_all(&prefix);
        let mut install = Command::new("sh");
        install.arg(Path::new(ROOT).join("ffi/install.sh")).env("PREFIX", &prefix).env("PROFILE", "dev").env("CARGO_TARGET_DIR", scratch.parent().unwrap());
        run(&mut install);
        prefix
    })
}

fn flags(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.args(arguments).arg("stillframe").env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"));
    run(&mut command).split_whitespace().map(str::to_owned).collect()
}

/// Compiles `source` (a path from the root) as `name`.
fn build(source: &str, name: &str, compiler: &[&str], link: &[String]) -> PathBuf {
    let program = prefix().join(name);
    let mut command = Command::new(compiler[0]);
    command.args(&compiler[1..]).args(STRICT).arg(Path::new(ROOT).join(source)).args(["-x", "none", "-o"]).arg(&program).args(link);
    run(&mut command);
    program
}

fn shared() -> Vec<String> {
    flags(&["--cflags", "--libs"])
}

/// The archive by its name, and what it needs.
fn archive() -> Vec<String> {
    let system = flags(&["--cflags", "--libs", "--static"]).into_iter().filter(|flag| flag != "-lstillframe");
    system.chain([prefix().join("lib/libstillframe.a").display().to_string(), "-lgcc_s".to_owned(), "-lm".to_owned()]).collect()
}

fn start(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    command
}

fn misuse(program: &Path) {
    let store = tempfile::tempdir().unwrap();
    let said = run(start(program).arg(store.path()));
    assert!(said.ends_with("checks\n"), "{said}");
}

#[test]
fn misuse_is_told_in_c() {
    misuse(&build("ffi/tests/programs/misuse.c", "misuse-c", C, &shared()));
}

#[test]
fn misuse_is_told_in_cpp() {
    misuse(&build("ffi/tests/programs/misuse.c", "misuse-cpp", CPP, &shared()));
}

#[test]
fn misuse_is_told_by_the_static_library() {
    let program = build("ffi/tests/programs/misuse.c", "misuse-static", C, &archive());
    misuse(&program);
    assert!(!run(Command::new("ldd").arg(&program)).contains("libstillframe"));
}

#[test]
fn the_address_sanitizer_finds_nothing() {
    let sanitized = [C, &["-fsanitize=address,undefined"]].concat();
    misuse(&build("ffi/tests/programs/misuse.c", "misuse-asan", &sanitized, &shared()));
}

/// The command, which the library runs for whole processes.
fn the_command() -> PathBuf {
    run(Command::new(env!("CARGO")).current_dir(ROOT).args(["build", "--quiet", "--package", "stillframe", "--bin", "stillframe"]));
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("debug/stillframe")
}

#[test]
fn whole_processes_are_framed_and_brought_back_from_c() {
    let program = build("ffi/tests/programs/whole.c", "whole", C, &shared());
    let dir = tempfile::tempdir().unwrap();
    let said = run(start(&program).arg(dir.path()).env("STILLFRAME_COMMAND", the_command()));
    assert!(said.contains("all is well"), "{said}");
}

#[test]
fn the_shared_library_has_a_soname_and_shows_versioned_symbols_only() {
    let library = prefix().join("lib/libstillframe.so");
    let dynamic = run(Command::new("readelf").args(["-W", "-d"]).arg(&library));
    let version: Vec<&str> = env!("CARGO_PKG_VERSION").split('.').collect();
    assert!(dynamic.contains(&format!("Library soname: [libstillframe.so.{}.{}]", version[0], version[1])), "{dynamic}");
    let symbols = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let shown: Vec<&str> = symbols.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let strange: Vec<_> = shown.iter().filter(|name| !(name.starts_with("sf_") && name.ends_with("@@STILLFRAME_0.1")) && **name != "STILLFRAME_0.1").collect();
    assert!(strange.is_empty() && shown.len() > 30, "{strange:?}");
    let header = fs::read_to_string(prefix().join("include/stillframe.h")).unwrap();
    assert!(shown.iter().filter_map(|name| name.split_once("@@")).all(|(name, _)| header.contains(&format!("{name}("))));
}

/// The line with the sum, unless the run is killed first.
fn heat(program: &Path, store: &Path, kill_after: Option<Duration>) -> Option<String> {
    let mut child = start(program).arg(store).args(["1200", "200", "20"]).stdout(Stdio::piped()).spawn().unwrap();
    if let Some(after) = kill_after {
        std::thread::sleep(after);
        let _ = child.kill();
    }
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() || out.status.signal() == Some(SIGKILL), "{}", out.status);
    String::from_utf8(out.stdout).unwrap().lines().find(|line| line.contains("checksum")).map(str::to_owned)
}

#[test]
fn the_heat_solver_survives_being_killed() {
    let program = build("examples/heat.c", "heat", C, &shared());
    let (undisturbed, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = heat(&program, undisturbed.path(), None).expect("a sum");
    let mut ended = None;
    for after in [30, 80, 60, 100, 40] {
        ended = ended.or(heat(&program, store.path(), Some(Duration::from_millis(after))));
    }
    assert_eq!(ended.or_else(|| heat(&program, store.path(), None)), Some(expected));
}

#[test]
fn the_cache_comes_back_with_its_pointers() {
    let program = build("examples/kvcache.c", "kvcache", C, &shared());
    let store = tempfile::tempdir().unwrap();
    let first = run(start(&program).arg(store.path()).arg("2"));
    assert!(first.starts_with("starts with 0 entries"), "{first}");
    // Killed under load, and started again: it checks every chain before it goes on.
    let mut child = start(&program).arg(store.path()).arg("30").stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    child.kill().unwrap();
    child.wait().unwrap();
    let again = run(start(&program).arg(store.path()).arg("1"));
    assert!(again.starts_with("starts with ") && !again.starts_with("starts with 0 ") && again.contains("snapshots under load"), "{again}");
}
