//! The manual pages in man/ say what the command line says. To write them anew: STILLFRAME_BLESS=1 cargo test --test man

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::CommandFactory;
use stillframe::cli::Cli;

/// Pages by file name.
type Pages = BTreeMap<String, String>;

fn read(dir: &Path) -> Pages {
    let files = fs::read_dir(dir).map(|files| files.map(|file| file.unwrap().path()).collect::<Vec<_>>()).unwrap_or_default();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn pages_are_as_the_command_line() {
    let fresh = tempfile::tempdir().unwrap();
    clap_mangen::generate_to(Cli::command().disable_help_subcommand(true), fresh.path()).unwrap();
    let (made, kept) = (read(fresh.path()), Path::new(env!("CARGO_MANIFEST_DIR")).join("man"));
    if std::env::var_os("STILLFRAME_BLESS").is_some() {
        let _ = fs::remove_dir_all(&kept);
        fs::create_dir(&kept).unwrap();
        made.iter().for_each(|(name, text)| fs::write(kept.join(name), text).unwrap());
    }
    let there = read(&kept);
    assert_eq!(there.keys().collect::<Vec<_>>(), made.keys().collect::<Vec<_>>(), "man/ lacks a page or has one too many");
    for (name, text) in &made {
        assert_eq!(&there[name], text, "man/{name} is out of date: STILLFRAME_BLESS=1 cargo test --test man");
    }
}
