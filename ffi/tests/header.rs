//! The header is what cbindgen makes of the code.

use std::path::Path;

const OURS: &str = env!("CARGO_MANIFEST_DIR");
const SOURCES: &[&str] = &["lib.rs", "guard.rs", "options.rs", "session.rs", "ticket.rs", "frame.rs", "whole.rs"];

/// `STILLFRAME_BLESS=1` writes it.
#[test]
fn the_header_is_that_of_the_code() {
    let dir = Path::new(OURS);
    let config = cbindgen::Config::from_file(dir.join("cbindgen.toml")).unwrap();
    let builder = SOURCES.iter().fold(cbindgen::Builder::new().with_config(config), |builder, file| builder.with_src(dir.join("src").join(file)));
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
