//! The rules of the house, held by a test: sizes, unsafe code, arrows between modules, and documents that match the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CODE: &[&str] = &["src", "ffi", "tests", "examples", "benches"];
const MOST_LINES: usize = 500;
const MOST_LINES_OF_A_FUNCTION: usize = 60;
/// The only places of this crate where unsafe code may be.
const UNSAFE: &[&str] = &["src/sys/", "src/arch/"];

/// A text file of the project, by its path from the root.
struct File {
    path: String,
    text: String,
}

impl File {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => walk(&path, found),
            false => found.push(path),
        }
    }
}

fn files(dirs: &[&str]) -> Vec<File> {
    let mut paths = Vec::new();
    dirs.iter().for_each(|dir| walk(&Path::new(ROOT).join(dir), &mut paths));
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        Some(File { path: path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned(), text })
    };
    let files: Vec<File> = paths.into_iter().filter_map(read).collect();
    assert!(files.len() >= dirs.len().min(2), "no files in {dirs:?}");
    files
}

fn document(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Fails with all violations at once.
fn none(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}\n{}", violations.join("\n"));
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}

#[test]
fn files_are_short() {
    let long = files(CODE).into_iter().filter(|file| file.lines().count() > MOST_LINES);
    none("files of more than 500 lines", long.map(|file| format!("{}: {} lines", file.path, file.lines().count())).collect());
}

/// The first line of a function, unless it ends there.
fn starts_function(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| ["const", "unsafe", "async", "extern", "\"C\""].contains(word) || word.starts_with("pub"));
    words.next() == Some("fn") && !line.ends_with('}') && !line.ends_with(';')
}

#[test]
fn functions_are_short() {
    let mut long = Vec::new();
    for file in files(CODE).iter().filter(|file| file.is_rust()) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| starts_function(line)) {
            // By the indentation, which braces inside of strings cannot deceive.
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let len = lines[at..].iter().position(|&line| line == end).map_or(0, |length| length + 1);
            if len > MOST_LINES_OF_A_FUNCTION {
                long.push(format!("{}:{}: {len} lines", file.path, at + 1));
            }
        }
    }
    none("functions of more than 60 lines", long);
}

#[test]
fn what_is_ignored_is_a_program_that_a_test_starts() {
    let files = files(&["tests", "ffi", "src"]);
    let mut orphans = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines: Vec<&str> = file.text.lines().collect();
        let ignored = lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with(&["#[", "ignore"].concat()));
        for (at, _) in ignored {
            let name = lines.get(at + 1).and_then(|line| line.trim_start().strip_prefix("fn ")).and_then(|line| line.split('(').next()).unwrap_or_default();
            let started = |file: &File| [format!("\"{name}\""), format!("::{name}\"")].iter().any(|call| file.text.contains(call));
            if name.is_empty() || !files.iter().any(started) {
                orphans.push(format!("{}:{}: nobody starts {name:?}", file.path, at + 1));
            }
        }
    }
    none("ignored tests that no test starts", orphans);
}

/// Words that open unsafe code; put together here, lest this file break its own rule.
fn unsafe_block() -> String {
    ["unsafe", " {"].concat()
}

#[test]
fn unsafe_code_stays_in_its_place() {
    let mut outside = Vec::new();
    for file in files(&["src", "examples", "benches"]).iter().filter(|file| file.is_rust() && !UNSAFE.iter().any(|dir| file.path.starts_with(dir))) {
        let found = file.lines().filter(|(_, line)| !is_comment(line) && [unsafe_block(), ["unsafe", " fn"].concat(), ["unsafe", " impl"].concat()].iter().any(|word| line.contains(word)));
        outside.extend(found.map(|(at, _)| format!("{}:{at}", file.path)));
    }
    none("unsafe code outside of src/sys and src/arch", outside);
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    let mut silent = Vec::new();
    for file in files(CODE).iter().filter(|file| file.is_rust()) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| !is_comment(line) && line.contains(&unsafe_block())) {
            // The comment may stand above the whole statement, and have several lines.
            let above = lines[..at].iter().rev().take(6);
            let said = above.take_while(|line| !line.trim().is_empty()).any(|line| is_comment(line) && line.contains("SAFETY:"));
            if !said && !line.contains("SAFETY:") {
                silent.push(format!("{}:{}", file.path, at + 1));
            }
        }
    }
    none("unsafe blocks without a SAFETY comment above", silent);
}

#[test]
fn nothing_is_left_undone() {
    let words = [["todo", "!"], ["unimplemented", "!"], ["dbg", "!("], ["FIX", "ME"], ["XX", "X"], ["TO", "DO"]].map(|parts| parts.concat());
    let mut left = Vec::new();
    let documents = ["README.md", "CHANGELOG.md", "src/ARCHITECTURE.md"].map(|path| File { path: path.to_owned(), text: document(path) });
    assert!(documents.iter().all(|file| !file.text.contains(&["@", "@"].concat())), "a document with a gap to fill");
    for file in files(CODE) {
        let found = file.lines().filter(|(_, line)| words.iter().any(|word| line.contains(word.as_str())));
        left.extend(found.map(|(at, line)| format!("{}:{at}: {}", file.path, line.trim())));
    }
    none("work left undone", left);
}

#[test]
fn the_project_names_no_place_of_its_making() {
    let words = [["/wo", "rk/"], ["/tmp/", "bash_jobs"], ["/tmp/", "wt-"]].map(|parts| parts.concat());
    let mut all = files(&["src", "ffi", "tests", "examples", "benches", "include", "man"]);
    all.extend(["README.md", "CHANGELOG.md", "Cargo.toml"].map(|path| File { path: path.to_owned(), text: document(path) }));
    let mut found = Vec::new();
    for file in all {
        let named = file.lines().filter(|(_, line)| words.iter().any(|word| line.contains(word.as_str())));
        found.extend(named.map(|(at, line)| format!("{}:{at}: {}", file.path, line.trim())));
    }
    none("paths of a certain machine", found);
}

#[test]
fn every_module_says_what_it_is() {
    let silent = files(&["src"]).into_iter().filter(|file| file.is_rust() && !file.text.starts_with("//! ") && !file.text.starts_with("#![doc"));
    none("modules without a first line of documentation", silent.map(|file| file.path).collect());
}

/// A row of the code map in ARCHITECTURE.md.
struct Row {
    /// `arch/`, `error.rs` …
    entry: String,
    /// Top-level modules it uses.
    uses: BTreeSet<String>,
}

impl Row {
    fn module(&self) -> &str {
        self.entry.trim_end_matches('/').trim_end_matches(".rs")
    }
}

/// Rows `| `entry` | what it is | `module` … |`, the lowest floor first.
fn code_map() -> Vec<Row> {
    let text = document("src/ARCHITECTURE.md");
    let section = text.split("## Code map").nth(1).and_then(|rest| rest.split("\n## ").next()).expect("a section of that name");
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').collect();
        let entry = quoted(cells.get(1)?).pop()?;
        Some(Row { entry, uses: quoted(cells.get(3)?).into_iter().collect() })
    };
    section.lines().filter(|line| line.starts_with("| `")).filter_map(row).collect()
}

#[test]
fn the_code_map_shows_the_tree() {
    let shown: BTreeSet<String> = code_map().into_iter().map(|row| row.entry).collect();
    let entries = fs::read_dir(Path::new(ROOT).join("src")).unwrap().map(|entry| entry.unwrap());
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned() + if entry.path().is_dir() { "/" } else { "" };
    // A directory beside a file of its name holds parts of that module.
    let there: BTreeSet<String> = entries.map(name).filter(|name| !name.ends_with('/') || !Path::new(ROOT).join("src").join(name.replace('/', ".rs")).exists()).collect();
    assert_eq!(shown, there, "left: the code map of src/ARCHITECTURE.md, right: src/");
}

/// Which top-level modules each one names.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(&["src"]).iter().filter(|file| file.is_rust()) {
        let module = file.path.trim_start_matches("src/").split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        // Tests inside of modules may look where they like.
        let code = file.text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
        let words = code.lines().filter(|line| !is_comment(line)).flat_map(|line| line.split("crate::").skip(1));
        let names = words.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default());
        // A list in braces would hide what it names: it shows up as an arrow to `{`.
        let named = names.map(|name| if name.is_empty() { "{" } else { name }).map(|name| if ["Error", "Result", "Kind"].contains(&name) { "error" } else { name });
        let entry = arrows.entry(module.clone()).or_default();
        entry.extend(named.filter(|name| **name != *module).map(str::to_owned));
    }
    arrows
}

#[test]
fn arrows_point_down() {
    let (map, arrows) = (code_map(), arrows());
    let mut below = BTreeSet::new();
    let mut wrong = Vec::new();
    for row in &map {
        wrong.extend(row.uses.difference(&below).map(|used| format!("{} -> {used}: not a lower row of the code map", row.module())));
        let empty = BTreeSet::new();
        let real = arrows.get(row.module()).unwrap_or(&empty);
        wrong.extend(real.difference(&row.uses).map(|used| format!("{} -> {used}: not in the code map", row.module())));
        wrong.extend(row.uses.difference(real).map(|used| format!("{} -> {used}: in the code map only", row.module())));
        below.insert(row.module().to_owned());
    }
    none("arrows between modules (| `module` | what | uses |, the lowest first)", wrong);
}

#[test]
fn the_readme_names_every_subcommand() {
    let help = Command::new(env!("CARGO_BIN_EXE_stillframe")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("a list of commands");
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    let readme = document("README.md");
    let missing = names.filter(|&name| name != "help" && !readme.contains(&format!("stillframe {name}")));
    none("subcommands that README.md does not show", missing.map(str::to_owned).collect());
}
