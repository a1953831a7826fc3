//! Restores as a user meets them: what they depend on, and where they run.

#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;
mod counter;
mod files;
mod places;
