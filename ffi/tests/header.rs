//! The header is what cbindgen makes of the code.

use std::collections::BTreeSet;
use std::path::Path;

const OURS: &str = env!("CARGO_MANIFEST_DIR");

/// `STILLFRAME_BLESS=1` writes it.
#[test]
fn the_header_is_that_of_the_code() {
    let dir = Path::new(OURS);
    let config = cbindgen::Config::from_file(dir.join("cbindgen.toml")).unwrap();
    // It follows the modules by itself: named again, each function would be declared again.
    let builder = cbindgen::Builder::new().with_config(config).with_src(dir.join("src/lib.rs"));
    let mut bytes = Vec::new();
    builder.generate().unwrap().write(&mut bytes);
    let made = String::from_utf8(bytes).unwrap();
    let path = dir.join("../include/stillframe.h");
    if std::env::var_os("STILLFRAME_BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert!(made == committed, "include/stillframe.h is not what the code says; make it anew: STILLFRAME_BLESS=1 cargo test -p stillframe-ffi --test header");
}

/// The comment and the declaration of each function.
fn functions(header: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut comment = String::new();
    for block in header.split("\n\n") {
        let (said, code): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| ["/**", " *"].iter().any(|start| line.starts_with(start)));
        if !said.is_empty() {
            comment = said.join(" ");
        }
        let code = code.join(" ");
        if code.contains(" sf_") && code.contains('(') && code.ends_with(';') && !code.contains('{') {
            found.push((std::mem::take(&mut comment), code));
        }
    }
    found
}

#[test]
fn every_function_says_which_threads_may_call_it_and_whose_handles_are() {
    let header = std::fs::read_to_string(Path::new(OURS).join("../include/stillframe.h")).unwrap();
    let functions = functions(&header);
    assert!(functions.len() > 30, "{functions:?}");
    let declared: BTreeSet<&str> = functions.iter().map(|(_, code)| code.as_str()).collect();
    assert_eq!(declared.len(), functions.len(), "something is declared twice");
    for (comment, code) in functions {
        assert!(comment.contains("thread"), "{code} says nothing of threads: {comment}");
        assert!(!code.contains("**") || comment.contains("the caller's") || comment.contains("belongs to"), "{code} does not say whose it is: {comment}");
    }
}
